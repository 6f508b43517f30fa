"""A run: one network trained at one seed, its fingerprint, and its folder.

`runs/models/<id>/` is a timm folder (`config.json`, `model.safetensors`) with `run.json`, `history.jsonl`
and `predictions.safetensors`; states on the way are `epoch-N.safetensors`. It is written aside and renamed, so it is
complete or absent. While a run trains, `runs/models/<id>.partial` is its last checkpoint, one safetensors file that is
replaced whole, and `<id>.epochs` has its states so far.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from distill.errors import UserError
from distill.storage.files import (
    atomic_write,
    clean_stale_temp_files,
    file_digest,
    has_valid_checksum,
    locked,
    read_tree,
    temporary_path,
    tensors_digest,
    with_checksum,
    write_tree,
)
from distill.storage.run import Run
from distill.storage.versions import versions

FILES = ("run.json", "config.json", "model.safetensors", "history.jsonl", "predictions.safetensors")
CARD = "README.md"  # its owner may write in it


# ------------------------------------------------------------------------------------------------- the store


@dataclass(frozen=True)
class RunStore:
    """The folder `runs/`, with `models/` for the runs and a folder for each study beside it."""

    root: Path

    def locked(self, study: str) -> AbstractContextManager[None]:
        """Within it no other process writes the study; UserError if one does already."""
        return locked(self.root / study)

    def folder(self, run_id: str) -> Path:
        """Where a run lies once it is complete."""
        return self.root / "models" / run_id

    def is_complete(self, run_id: str) -> bool:
        """Whether the run is there; it is never there in part."""
        return all((self.folder(run_id) / name).is_file() for name in FILES)

    def damage(self, run_id: str) -> str | None:
        """What is wrong with a complete run's files, in a sentence; None where they are what was written."""
        folder = self.folder(run_id)
        try:
            record = json.loads((folder / "run.json").read_text("utf-8"))
            if not has_valid_checksum(record):
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

    def save(
        self,
        run: Run,
        model: nn.Module,
        record: dict[str, Any],
        history: list[dict[str, Any]],
        predictions: dict[str, Tensor],
        card: str = "",
    ) -> None:
        """Write a finished run aside, rename it into place, and drop its checkpoint; `card` is its README.md."""
        final = self.folder(run.id)
        aside = temporary_path(final)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            self._write(aside, run, model, record, history, predictions, card)
            if not self.is_complete(run.id):  # else another process was first; its run is the same
                shutil.rmtree(final, ignore_errors=True)
                aside.rename(final)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"cannot write {final}: {getattr(error, 'strerror', None) or error}"
            ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self.forget(run.id)
        clean_stale_temp_files(final.parent)

    def _write(
        self,
        folder: Path,
        run: Run,
        model: nn.Module,
        record: dict[str, Any],
        history: list[dict[str, Any]],
        predictions: dict[str, Tensor],
        card: str,
    ) -> None:
        """The files of a run, `run.json` with the digests of the others last."""
        cfg, data = model.pretrained_cfg, run.settings["data"]
        crop = run.settings["augment"].get("crop", min(data["shape"][1:])) / min(data["shape"][1:])
        save_for_hf(
            model.to(memory_format=torch.contiguous_format),
            str(folder),
            safe_serialization=True,
            data_config={
                "input_size": cfg["input_size"],
                "mean": cfg["mean"],
                "std": cfg["std"],
                "interpolation": "bicubic",
                "crop_mode": "center",
                "crop_pct": round(crop * data.get("crop_pct", 1.0), 6),
            },
        )
        save_file(predictions, folder / "predictions.safetensors")
        for state in self._snapshot_folder(run.id).glob("epoch-*.safetensors"):
            if (
                epoch_of(state.name) in run.arm.train.snapshot_epochs
            ):  # another study may want others
                shutil.copy2(state, folder)
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
        (folder / CARD).write_text(card, encoding="utf-8")
        digests = {
            path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name != CARD
        }
        record = {
            "id": run.id,
            **record,
            "settings": run.settings,
            "versions": versions(),
            "sha256": digests,
        }
        (folder / "run.json").write_text(json.dumps(with_checksum(record), indent=1) + "\n")

    def logit_cache_path(self, identity: dict[str, Any]) -> Path:
        """Where a teacher's answers to the views of that identity are kept."""
        return self.root / "logits" / f"{identity['teacher']}-{_short(identity)}.logits"

    def analysis_path(self, identity: dict[str, Any]) -> Path:
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
            raise UserError(
                f"{path} is damaged ({error}); remove its folder and the run is trained again"
            ) from None
        return text

    def predictions(self, run_id: str) -> dict[str, Tensor]:
        """``SPLIT.logits [N, K]`` and ``SPLIT.labels [N]`` for test, validation and (part of) train."""
        path = self.folder(run_id) / "predictions.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is damaged ({error}); remove its folder and the run is trained again"
            ) from None

    # ------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint(self, run_id: str) -> Path:
        return self.root / "models" / f"{run_id}.partial"

    def save_checkpoint(self, run_id: str, state: dict[str, Any]) -> None:
        """Replace a run's checkpoint, a tree of tensors and JSON values, by another."""
        write_tree(self._checkpoint(run_id), state)

    def load_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """A run's checkpoint, or None if there is none; ValueError if it is damaged."""
        return read_tree(self._checkpoint(run_id))

    def _snapshot_folder(self, run_id: str) -> Path:
        return self.root / "models" / f"{run_id}.epochs"

    def save_snapshot(self, run_id: str, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a network as it is after so many epochs, for the run that it is on the way to."""
        path = self._snapshot_folder(run_id) / f"epoch-{epoch:04d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        copies = {
            name: w.detach().clone(memory_format=torch.contiguous_format)
            for name, w in weights.items()
        }
        with atomic_write(path) as aside:
            save_file(copies, aside, metadata={"sha256": tensors_digest(copies)})

    def damaged_snapshot(self, run_id: str) -> Path | None:
        """A state of a run that is not complete which is not what was written, if there is one."""
        for path in sorted(self._snapshot_folder(run_id).glob("epoch-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    stated = (file.metadata() or {}).get("sha256")
                    if stated != tensors_digest(
                        {name: file.get_tensor(name) for name in file.keys()}
                    ):  # noqa: SIM118
                        return path
            except (OSError, SafetensorError):
                return path
        return None

    def forget(self, run_id: str) -> None:
        """Remove what there is of a run that is not complete."""
        self._checkpoint(run_id).unlink(missing_ok=True)
        shutil.rmtree(self._snapshot_folder(run_id), ignore_errors=True)

    def snapshots(self, run_id: str) -> dict[int, Path]:
        """The stored states of a run on its way, by the number of epochs that they have seen; not the last."""
        names = [name for name in self.record(run_id)["sha256"] if name.startswith("epoch-")]
        return {epoch_of(name): self.folder(run_id) / name for name in sorted(names, key=epoch_of)}


def epoch_of(name: str) -> int:
    """The epochs that a state has seen, by its file's name."""
    return int(name.removeprefix("epoch-").removesuffix(".safetensors"))


def _short(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
