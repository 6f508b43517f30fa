"""A run: one network trained at one seed, its fingerprint, and its folder.

`runs/models/<id>/` is a timm folder (`config.json`, `model.safetensors`) with `run.json`, `history.jsonl`
and `predictions.safetensors`; states on the way are `epoch-N.safetensors`. It is written aside and renamed, so it is
complete or absent. While a run trains, `runs/models/<id>.partial` is its last checkpoint, one safetensors file that is
replaced whole, and `<id>.epochs` has its states so far.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from distill.document import UserError, nearest
from distill.files import (
    aside_of,
    file_digest,
    is_sealed,
    locked,
    read_tree,
    remove_left_over,
    sealed,
    tensors_digest,
    write_tree,
    written_aside,
)
from distill.models.build import own_size
from distill.recipe import NOT_IN_FINGERPRINT, Arm, Recipe

FILES = ("run.json", "config.json", "model.safetensors", "history.jsonl", "predictions.safetensors")
CARD = "README.md"  # its owner may write in it
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
    def depth(self) -> int:
        """How many networks must be there before this one can be trained."""
        return 1 + max((teacher.depth for teacher in self.teachers), default=-1)

    @property
    def title(self) -> str:
        """How messages name the run."""
        return self.arm.name if self.seed is None else f"{self.arm.name}, seed {self.seed}"


def plan_runs(recipe: Recipe, data_identity: dict[str, Any], precision: str) -> list[Run]:
    """Every run of a study, teachers before their students."""
    runs: dict[tuple[str, int | None], Run] = {}
    for arm in recipe.arms:
        for seed in recipe.seeds if not arm.given else [None]:
            teachers = tuple(runs.get((name, seed)) or runs[name, None] for name in arm.teachers)
            settings = _settings(arm, seed, teachers, data_identity, precision, recipe.data.store)
            text = json.dumps(settings, sort_keys=True)
            run_id = hashlib.sha256(text.encode()).hexdigest()[:16]
            runs[arm.name, seed] = Run(run_id, arm, seed, teachers, settings)
    return list(runs.values())


def _settings(arm: Arm, seed: int | None, teachers: tuple[Run, ...], data_identity: dict[str, Any],
              precision: str, store: str | int) -> dict[str, Any]:
    """Defaults are left out, so that an option that a later version adds does not change old identities."""
    settings = {
        "format": FORMAT, "data": data_identity, "model": arm.model, "model_args": arm.model_args,
        "pretrained": arm.pretrained, "checkpoint": _weights_digest(arm),
        "augment": arm.augment.model_dump(exclude_defaults=True),
    }
    size = arm.input_size or own_size(arm)
    if size:
        settings["input_size"] = size
    if arm.loss is not None:
        train = arm.train.model_dump(exclude_defaults=True, exclude=NOT_IN_FINGERPRINT | {"precision"})
        settings |= {"loss": arm.loss, "train": train, "precision": precision, "seed": seed,
                     "teacher": one_or_list([teacher.id for teacher in teachers])}
        if teachers and store != "exact":
            settings["store"] = store  # rounds what the student learns from
    return settings


def one_or_list(ids: list[str]) -> str | list[str] | None:
    """None for none, the one alone, else all: how files name the teachers of a run."""
    return ids if len(ids) > 1 else next(iter(ids), None)


def _weights_digest(arm: Arm) -> list[str] | None:
    """Of the local files that an arm starts from: weights, and the configuration beside them."""
    kind, _, place = arm.model.partition(":")
    path = Path(arm.checkpoint or place)
    if not arm.checkpoint and kind != "local-dir":
        return None
    files = [path / "model.safetensors", path / "config.json"] if path.is_dir() else [path, path.parent / "config.json"]
    if not files[0].is_file():
        raise UserError(f"{arm.name}: checkpoint {files[0]} does not exist")
    return [file_digest(file) for file in files if file.is_file()]


# ------------------------------------------------------------------------------------------------- the store


@dataclass(frozen=True)
class Store:
    """The folder `runs/`, with `models/` for the runs and a folder for each study beside it."""

    root: Path

    def locked(self, study: str) -> AbstractContextManager[None]:
        """Within it no other process writes the study; UserError if one does already."""
        return locked(self.root / study)

    def folder(self, run_id: str) -> Path:
        """Where a run lies once it is complete."""
        return self.root / "models" / run_id

    def complete(self, run_id: str) -> bool:
        """Whether the run is there; it is never there in part."""
        return all((self.folder(run_id) / name).is_file() for name in FILES)

    def damage(self, run_id: str) -> str | None:
        """What is wrong with a complete run's files, in a sentence; None where they are what was written."""
        folder = self.folder(run_id)
        try:
            record = json.loads((folder / "run.json").read_text("utf-8"))
            if not is_sealed(record):
                return f"{folder / 'run.json'} is not what was written"
            for name, digest in record["sha256"].items():
                if file_digest(folder / name) != digest:
                    return f"{folder / name} is not what was written (its sha256 differs)"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{folder / 'run.json'} or what it lists cannot be read ({error})"
        return None

    def set_aside(self, run_id: str) -> Path:
        """Rename a damaged run's folder, so that the run is trained again; returns the new place."""
        place = self.root / "models" / f"{run_id}.damaged"
        with suppress(FileNotFoundError):  # another process was first
            shutil.rmtree(place, ignore_errors=True)
            self.folder(run_id).rename(place)
        return place

    def save(self, run: Run, model: nn.Module, record: dict[str, Any], history: list[dict[str, Any]],
             predictions: dict[str, Tensor], card: str = "") -> None:
        """Write a finished run aside, rename it into place, and drop its checkpoint; `card` is its README.md."""
        final = self.folder(run.id)
        aside = aside_of(final)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            self._write(aside, run, model, record, history, predictions, card)
            if not self.complete(run.id):  # else another process was first; its run is the same
                shutil.rmtree(final, ignore_errors=True)
                aside.rename(final)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot write {final}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self.forget(run.id)
        remove_left_over(final.parent)

    def _write(self, folder: Path, run: Run, model: nn.Module, record: dict[str, Any], history: list[dict[str, Any]],
               predictions: dict[str, Tensor], card: str) -> None:
        """The files of a run, `run.json` with the digests of the others last."""
        cfg, data = model.pretrained_cfg, run.settings["data"]
        crop = run.settings["augment"].get("crop", min(data["shape"][1:])) / min(data["shape"][1:])
        save_for_hf(model.to(memory_format=torch.contiguous_format), str(folder), safe_serialization=True,
                    data_config={"input_size": cfg["input_size"], "mean": cfg["mean"], "std": cfg["std"],
                                 "interpolation": "bicubic", "crop_mode": "center",
                                 "crop_pct": round(crop * data.get("crop_pct", 1.0), 6)})
        save_file(predictions, folder / "predictions.safetensors")
        for state in self._states(run.id).glob("epoch-*.safetensors"):
            if epoch_of(state.name) in run.arm.train.state_epochs:  # another study may want others
                shutil.copy2(state, folder)
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
        (folder / CARD).write_text(card, encoding="utf-8")
        digests = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != CARD}
        record = {"id": run.id, **record, "settings": run.settings, "versions": versions(), "sha256": digests}
        (folder / "run.json").write_text(json.dumps(sealed(record), indent=1) + "\n")

    def answers(self, identity: dict[str, Any]) -> Path:
        """Where a teacher's answers to the views of that identity are kept."""
        return self.root / "logits" / f"{identity['teacher']}-{_short(identity)}.logits"

    def analysis(self, identity: dict[str, Any]) -> Path:
        """Where what was found within a run, looked into as the identity says, is kept."""
        return self.root / "analysis" / f"{identity['run']}-{_short(identity)}.safetensors"

    def record(self, run_id: str) -> dict[str, Any]:
        """A run's `run.json`."""
        return json.loads(self._text(run_id, "run.json"))

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """A run's epochs, in order."""
        return [json.loads(line) for line in self._text(run_id, "history.jsonl").splitlines()]

    def _text(self, run_id: str, name: str) -> str:
        """A JSON file of a run; UserError if it is damaged."""
        path = self.folder(run_id) / name
        try:
            text = path.read_text("utf-8")
            for part in text.splitlines() if name.endswith("l") else [text]:
                json.loads(part)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); remove its folder and the run is trained again") from None
        return text

    def predictions(self, run_id: str) -> dict[str, Tensor]:
        """``SPLIT.logits [N, K]`` and ``SPLIT.labels [N]`` for test, validation and (part of) train."""
        path = self.folder(run_id) / "predictions.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({error}); remove its folder and the run is trained again") from None

    # ------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self, run_id: str) -> Path:
        return self.root / "models" / f"{run_id}.partial"

    def save_checkpoint(self, run_id: str, state: dict[str, Any]) -> None:
        """Replace a run's checkpoint, a tree of tensors and JSON values, by another."""
        write_tree(self._checkpoint(run_id), state)

    def load_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """A run's checkpoint, or None if there is none; ValueError if it is damaged."""
        return read_tree(self._checkpoint(run_id))

    def _states(self, run_id: str) -> Path:
        return self.root / "models" / f"{run_id}.epochs"

    def save_state(self, run_id: str, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a network as it is after so many epochs, for the run that it is on the way to."""
        path = self._states(run_id) / f"epoch-{epoch:04d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        copies = {name: w.detach().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
        with written_aside(path) as aside:
            save_file(copies, aside, metadata={"sha256": tensors_digest(copies)})

    def damaged_state(self, run_id: str) -> Path | None:
        """A state of a run that is not complete which is not what was written, if there is one."""
        for path in sorted(self._states(run_id).glob("epoch-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    stated = (file.metadata() or {}).get("sha256")
                    if stated != tensors_digest({name: file.get_tensor(name) for name in file.keys()}):  # noqa: SIM118
                        return path
            except (OSError, SafetensorError):
                return path
        return None

    def forget(self, run_id: str) -> None:
        """Remove what there is of a run that is not complete."""
        self._checkpoint(run_id).unlink(missing_ok=True)
        shutil.rmtree(self._states(run_id), ignore_errors=True)

    def states(self, run_id: str) -> dict[int, Path]:
        """The stored states of a run on its way, by the number of epochs that they have seen; not the last."""
        names = [name for name in self.record(run_id)["sha256"] if name.startswith("epoch-")]
        return {epoch_of(name): self.folder(run_id) / name for name in sorted(names, key=epoch_of)}

    # ------------------------------------------------------------------------------------------------- names

    def find(self, name: str) -> list[str]:
        """Run ids that a person means by a folder, the beginning of an id, or ``STUDY:ARM``.

        Raises:
            UserError: if nothing or too much fits.
        """
        if (Path(name) / "run.json").is_file() and Path(name).resolve().parent == (self.root / "models").resolve():
            return [Path(name).resolve().name]
        study, colon, arm = name.partition(":")
        if colon:
            results = read_results(self.root / study)
            found = [run["id"] for run in results["runs"] if run["arm"] == arm]
            if not found:
                known = {run["arm"] for run in results["runs"]}
                raise UserError(f"study {study} has no arm '{arm}'; {nearest(arm, known)}")
            return found
        folder = self.root / "models"
        names = [p.name for p in folder.iterdir() if "." not in p.name] if folder.is_dir() else []
        ids = [name for name in names if self.complete(name)]
        found = [i for i in ids if i.startswith(name)]
        if len(found) != 1:
            raise UserError(f"'{name}' fits {len(found)} of the {len(ids)} runs in {folder}")
        return found


def epoch_of(name: str) -> int:
    """The epochs that a state has seen, by its file's name."""
    return int(name.removeprefix("epoch-").removesuffix(".safetensors"))


def _short(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def read_results(study: Path) -> dict[str, Any]:
    """A study's `results.json`.

    Raises:
        UserError: if there is none, or it is not one.
    """
    path = study / "results.json"
    try:
        results = json.loads(path.read_text("utf-8"))
        if not {"runs", "comparisons", "study"} <= set(results):
            raise ValueError("not a study's results")
        if not is_sealed(results):
            raise ValueError("it is not what was written, by its seal")
        return {key: value for key, value in results.items() if key != "seal"}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `distill run` of the recipe writes it") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not readable: {error}; `distill run` of the recipe writes it again") from None


@cache
def versions() -> dict[str, str]:
    """Of the libraries that decide a result, and the hardware at hand."""
    libraries = {name: version(name) for name in ("distill", "torch", "timm", "accelerate", "numpy")}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {**libraries, "python": platform.python_version(), "platform": platform.platform(),
            "hardware": ", ".join(gpus) or f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"
            if hasattr(os, "sched_getaffinity") else _cpu_name()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
