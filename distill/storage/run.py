"""A run: one network trained at one seed, its fingerprint, and its folder.

`runs/models/<id>/` is a timm folder (`config.json`, `model.safetensors`) with `run.json`, `history.jsonl`
and `predictions.safetensors`; states on the way are `epoch-N.safetensors`. It is written aside and renamed, so it is
complete or absent. While a run trains, `runs/models/<id>.partial` is its last checkpoint, one safetensors file that is
replaced whole, and `<id>.epochs` has its states so far.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.losses import LOSSES
from distill.models.factory import pretrained_size
from distill.recipe.loss_terms import loss_settings_model
from distill.recipe.schema import NOT_IN_FINGERPRINT, Arm, Recipe
from distill.storage.files import (
    file_digest,
)

FORMAT = 2  # raised when the same settings would train to other weights


@dataclass(frozen=True)
class Run:
    """The unit that is trained, stored, resumed and reused.

    Attributes:
        id: the first 16 digits of the fingerprint.
        arm: of the study at hand; not part of the identity, so studies share runs.
        seed: None for a network that is given, not trained.
        teachers: the runs that it learns from; more than one are an ensemble.
        settings: all that the weights depend on: what the fingerprint is of.
    """

    id: str
    arm: Arm
    seed: int | None
    teachers: "tuple[Run, ...]"
    settings: dict[str, Any] = field(repr=False, compare=False)

    @property
    def generation(self) -> int:
        """How many networks must be there before this one can be trained."""
        return 1 + max((teacher.generation for teacher in self.teachers), default=-1)

    @property
    def display_name(self) -> str:
        """How messages name the run."""
        return self.arm.name if self.seed is None else f"{self.arm.name}, seed {self.seed}"


def plan_runs(recipe: Recipe, data_identity: dict[str, Any], precision: str) -> list[Run]:
    """Every run of a study, teachers before their students."""
    runs: dict[tuple[str, int | None], Run] = {}
    for arm in recipe.arms:
        for seed in recipe.seeds if not arm.frozen else [None]:
            teachers = tuple(runs.get((name, seed)) or runs[name, None] for name in arm.teachers)
            settings = _settings(
                arm, seed, teachers, data_identity, precision, recipe.data.logit_cache
            )
            text = json.dumps(settings, sort_keys=True)
            run_id = hashlib.sha256(text.encode()).hexdigest()[:16]
            runs[arm.name, seed] = Run(run_id, arm, seed, teachers, settings)
    return list(runs.values())


def _without_defaults(loss: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a loss without settings at their defaults: a default that is written out is the same run."""
    return {
        name: loss_settings_model(LOSSES[name])(**settings).model_dump(exclude_defaults=True)
        for name, settings in loss.items()
    }


def _settings(
    arm: Arm,
    seed: int | None,
    teachers: tuple[Run, ...],
    data_identity: dict[str, Any],
    precision: str,
    store: str | int,
) -> dict[str, Any]:
    """Defaults are left out, so that an option that a later version adds does not change old identities."""
    settings = {
        "format": FORMAT,
        "data": data_identity,
        "model": arm.model,
        "model_args": arm.model_args,
        "pretrained": arm.pretrained,
        "checkpoint": _weights_digest(arm),
        "augment": arm.augment.model_dump(exclude_defaults=True),
    }
    size = arm.input_size or pretrained_size(arm)
    if size:
        settings["input_size"] = size
    if arm.loss is not None:
        train = arm.train.model_dump(
            exclude_defaults=True, exclude=NOT_IN_FINGERPRINT | {"precision"}
        )
        settings |= {
            "loss": _without_defaults(arm.loss),
            "train": train,
            "precision": precision,
            "seed": seed,
            "teacher": teacher_field([teacher.id for teacher in teachers]),
        }
        if teachers and store != "exact":
            settings["store"] = store  # rounds what the student learns from
    return settings


def teacher_field(ids: list[str]) -> str | list[str] | None:
    """None for none, the one alone, else all: how files name the teachers of a run."""
    return ids if len(ids) > 1 else next(iter(ids), None)


def _weights_digest(arm: Arm) -> list[str] | None:
    """Of the local files that an arm starts from: weights, and the configuration beside them."""
    kind, _, place = arm.model.partition(":")
    path = Path(arm.checkpoint or place)
    if not arm.checkpoint and kind != "local-dir":
        return None
    files = (
        [path / "model.safetensors", path / "config.json"]
        if path.is_dir()
        else [path, path.parent / "config.json"]
    )
    if not files[0].is_file():
        raise UserError(f"{arm.name}: checkpoint {files[0]} does not exist")
    return [file_digest(file) for file in files if file.is_file()]
