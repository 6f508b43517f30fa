"""A run: one network trained with one seed.

Its id is a fingerprint, a hash of everything that its weights depend on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.errors import UserError
from distill.losses import LOSSES
from distill.models.factory import pretrained_size
from distill.models.weight_files import weight_file_paths
from distill.recipe.loss_terms import loss_settings_model
from distill.recipe.schema import NOT_IN_FINGERPRINT, Arm, Recipe
from distill.storage.files import file_digest
from distill.storage.user_code import code_digest, network_code

FORMAT = 2
"""Version number in every fingerprint; raise it when the same settings lead to other weights."""

START = "classes by name, a new last layer of zeros"
"""How given weights become those of a network; change it when the same files lead to others."""

ID_DIGITS = 16


@dataclass(frozen=True)
class Run:
    """One network that is trained, stored, resumed and reused as a whole.

    Attributes:
        id: the first 16 digits of the fingerprint.
        arm: the study's arm. It is not part of the fingerprint, so that studies can share runs.
        seed: None for a frozen network, which is not trained.
        teachers: the runs that it learns from; several are an ensemble.
        settings: everything that the weights depend on; the fingerprint is a hash of these
            settings.
    """

    id: str
    arm: Arm
    seed: int | None
    teachers: "tuple[Run, ...]"
    settings: dict[str, Any] = field(repr=False, compare=False)

    @property
    def generation(self) -> int:
        """Return 0 for a run without teachers, 1 for students of such runs, and so on."""
        return 1 + max((teacher.generation for teacher in self.teachers), default=-1)

    @property
    def display_name(self) -> str:
        """Return the name of the run in messages: its arm and seed."""
        if self.seed is None:
            return self.arm.name
        return f"{self.arm.name}, seed {self.seed}"


def plan_runs(recipe: Recipe, data_identity: dict[str, Any], precision: str) -> list[Run]:
    """Return every run of a study, teachers before their students.

    Args:
        recipe: the study's recipe; its arms are already in this order.
        data_identity: everything that the images and labels depend on (`Splits.identity`).
        precision: training precision, as accelerate names it: "no", "bf16" or "fp16".

    Raises:
        UserError: if a checkpoint that an arm starts from does not exist.
    """
    runs: dict[tuple[str, int | None], Run] = {}
    for arm in recipe.arms:
        seeds = [None] if arm.frozen else recipe.seeds
        for seed in seeds:
            teachers = tuple(_teacher_run(runs, name, seed) for name in arm.teachers)
            settings = _fingerprint_settings(arm, data_identity)
            if arm.loss is not None:
                settings |= _training_settings(arm, seed, teachers, precision)
                if teachers:
                    settings |= _cache_settings(recipe)
            runs[arm.name, seed] = Run(fingerprint(settings), arm, seed, teachers, settings)
    return list(runs.values())


def _teacher_run(runs: dict[tuple[str, int | None], Run], name: str, seed: int | None) -> Run:
    """Return a teacher's run of the same seed, or its only run if it is frozen."""
    return runs.get((name, seed)) or runs[name, None]


def fingerprint(settings: dict[str, Any]) -> str:
    """Return the id of a run with these settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def _fingerprint_settings(arm: Arm, data_identity: dict[str, Any]) -> dict[str, Any]:
    """Return what the weights of any run of an arm depend on, trained or frozen.

    Defaults are left out, so that an option that a later version adds does not change old
    fingerprints.
    """
    settings = {
        "format": FORMAT,
        "data": data_identity,
        "model": arm.model,
        "model_args": arm.model_args,
        "pretrained": arm.pretrained,
        "checkpoint": _checkpoint_digests(arm),
        "augment": arm.augment.model_dump(exclude_defaults=True),
    }
    size = arm.input_size or pretrained_size(arm)
    if size:
        settings["input_size"] = size
    starts_from_weights = arm.pretrained or arm.checkpoint or ":" in arm.model
    if starts_from_weights:
        settings["start"] = START
    code = _code_settings(arm)
    if code:
        settings["code"] = code
    return settings


def _training_settings(
    arm: Arm, seed: int | None, teachers: Sequence[Run], precision: str
) -> dict[str, Any]:
    """Return the additional settings that the weights of a trained run depend on."""
    # The precision has a key of its own, since the launcher may decide it.
    excluded = NOT_IN_FINGERPRINT | {"precision"}
    return {
        "loss": _without_defaults(arm.loss),
        "train": arm.train.model_dump(exclude_defaults=True, exclude=excluded),
        "precision": precision,
        "seed": seed,
        "teacher": teacher_field([teacher.id for teacher in teachers]),
    }


def _cache_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the precision of the logit cache if it rounds logits, else nothing."""
    precision = recipe.data.logit_cache
    return {} if precision == "exact" else {"store": precision}


def _without_defaults(loss: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a loss without settings at their defaults, since these do not change the run."""
    stripped = {}
    for name, settings in loss.items():
        model = loss_settings_model(LOSSES[name])(**settings)
        stripped[name] = model.model_dump(exclude_defaults=True)
    return stripped


def teacher_field(ids: list[str]) -> str | list[str] | None:
    """Return how files name the teachers of a run: None, a single id, or a list of several."""
    if len(ids) > 1:
        return ids
    return ids[0] if ids else None


def _checkpoint_digests(arm: Arm) -> list[str] | None:
    """Return the digests of the local files that an arm starts from, None if it starts from none.

    These are the weights, and the configuration beside them.
    """
    kind, _, folder = arm.model.partition(":")
    if not arm.checkpoint and kind != "local-dir":
        return None
    try:
        weights = weight_file_paths(arm.checkpoint or folder)
    except UserError as error:
        raise UserError(f"{arm.name}: {error}") from None
    config = weights[0].parent / "config.json"
    return [file_digest(file) for file in (*weights, config) if file.is_file()]


def _code_settings(arm: Arm) -> dict[str, str]:
    """Return digests of the code of a network and of loss terms that users wrote."""
    codes = {"model": network_code(arm.model, arm.model_args)}
    codes |= {name: code_digest(LOSSES[name]) for name in arm.loss or {}}
    return {name: digest for name, digest in codes.items() if digest}
