"""Store finished runs, and determine the paths of all other files.

`runs/models/<id>/` is a timm folder (`config.json`, `model.safetensors`) with `run.json`,
`history.jsonl` and `predictions.safetensors`; snapshots are `epoch-N.safetensors`. The folder is
written under a temporary name and renamed, so that it is complete or absent.
"""

import hashlib
import json
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from distill.errors import UserError
from distill.storage.checkpoints import Checkpoints, epoch_of
from distill.storage.files import (
    clean_stale_temp_files,
    file_digest,
    has_valid_checksum,
    reason,
    set_default_permissions,
    temporary_path,
    with_checksum,
)
from distill.storage.locks import lock_folder
from distill.storage.run_fingerprint import Run
from distill.storage.versions import versions

FILES = ("run.json", "config.json", "model.safetensors", "history.jsonl", "predictions.safetensors")

CARD = "README.md"
"""The model card. It has no digest, because users may edit it."""


@dataclass(frozen=True)
class RunStore:
    """The folder `runs/`: `models/` with the runs, and a folder for each study.

    Attributes:
        root: the folder `runs/`.
    """

    root: Path

    @property
    def models(self) -> Path:
        """Return the folder of all runs, finished and unfinished."""
        return self.root / "models"

    @property
    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints of runs that still train."""
        return Checkpoints(self.models)

    def lock_study(self, study: str) -> AbstractContextManager[None]:
        """Return a context in which no other process writes the study.

        Raises:
            UserError: on entry, if another process writes it already.
        """
        return lock_folder(self.root / study)

    def folder(self, run_id: str) -> Path:
        """Return the folder of a finished run."""
        return self.models / run_id

    def logit_cache_path(self, identity: dict[str, Any]) -> Path:
        """Return the folder for cached logits.

        Args:
            identity: JSON values, everything that the logits depend on; "teacher" is a run id.
        """
        return self.root / "logits" / f"{identity['teacher']}-{_short_digest(identity)}"

    def analysis_path(self, identity: dict[str, Any]) -> Path:
        """Return the file for the analysis of a run.

        Args:
            identity: JSON values, everything that it depends on; "run" is the run id.
        """
        return self.root / "analysis" / f"{identity['run']}-{_short_digest(identity)}.safetensors"

    # ------------------------------------------------------------------------------------ integrity

    def is_complete(self, run_id: str) -> bool:
        """Return whether a run is stored; a run is never stored in part."""
        return all((self.folder(run_id) / name).is_file() for name in FILES)

    def damage(self, run_id: str) -> str | None:
        """Return what is wrong with the files of a complete run, None if they are undamaged."""
        folder = self.folder(run_id)
        try:
            record = json.loads((folder / "run.json").read_text("utf-8"))
            if not has_valid_checksum(record):
                return f"{folder / 'run.json'} has changed since it was written"
            for name, digest in record["sha256"].items():
                if file_digest(folder / name) != digest:
                    return f"{folder / name} has changed since it was written (its sha256 differs)"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{folder / 'run.json'} or a file that it lists cannot be read ({error})"
        return None

    def set_aside(self, run_id: str) -> Path:
        """Rename a damaged run's folder, so that it is trained again; return the new folder."""
        renamed = self.models / f"{run_id}.damaged"
        # Another process may have set it aside already.
        with suppress(FileNotFoundError):
            shutil.rmtree(renamed, ignore_errors=True)
            self.folder(run_id).rename(renamed)
        return renamed

    # -------------------------------------------------------------------------------------- writing

    def save(
        self,
        run: Run,
        model: nn.Module,
        record: dict[str, Any],
        history: list[dict[str, Any]],
        predictions: dict[str, Tensor],
        card: str = "",
    ) -> None:
        """Store a finished run and remove its checkpoint.

        Args:
            run: the finished run.
            model: its network.
            record: facts for `run.json`; identity, settings, versions and digests are added.
            history: one entry per epoch.
            predictions: logits and labels, as `predictions` returns them.
            card: the text of its model card.

        Raises:
            UserError: if the run cannot be written.
        """
        final = self.folder(run.id)
        temporary = temporary_path(final)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            write_network(temporary, run, model)
            save_file(predictions, temporary / "predictions.safetensors")
            self._copy_snapshots(temporary, run)
            _write_texts(temporary, run, record, history, card)
            for file in temporary.iterdir():
                set_default_permissions(file)
            # Another process may have stored the run already; its weights are the same.
            if not self.is_complete(run.id):
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot write {final}: {reason(error)}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.checkpoints.forget(run.id)
        clean_stale_temp_files(self.models)

    def _copy_snapshots(self, folder: Path, run: Run) -> None:
        """Copy the snapshots that this study asks for; another study may have left others."""
        for epoch, path in self.checkpoints.snapshots(run.id).items():
            if epoch in run.arm.train.snapshot_epochs:
                shutil.copy2(path, folder)

    # -------------------------------------------------------------------------------------- reading

    def record(self, run_id: str) -> dict[str, Any]:
        """Return a run's `run.json`.

        Raises:
            UserError: if it is damaged.
        """
        path = self.folder(run_id) / "run.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """Return a run's history, one entry per epoch.

        Raises:
            UserError: if it is damaged.
        """
        path = self.folder(run_id) / "history.jsonl"
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from None

    def predictions(self, run_id: str) -> dict[str, Tensor]:
        """Return a run's `SPLIT.logits` `[N, K]` and `SPLIT.labels` `[N]`.

        SPLIT is "test", "validation" or "train"; of a large training split only a part is stored.

        Raises:
            UserError: if the file is damaged.
        """
        path = self.folder(run_id) / "predictions.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None

    def snapshots(self, run_id: str) -> dict[int, Path]:
        """Return the snapshots of a finished run by their number of epochs."""
        names = [name for name in self.record(run_id)["sha256"] if name.startswith("epoch-")]
        return {epoch_of(name): self.folder(run_id) / name for name in sorted(names, key=epoch_of)}


def write_network(folder: Path, run: Run, model: nn.Module) -> None:
    """Write the weights, and the configuration from which timm builds network and transform."""
    config = model.pretrained_cfg
    data = run.settings["data"]
    shorter_side = min(data["shape"][1:])
    crop = run.settings["augment"].get("crop", shorter_side) / shorter_side
    data_config = {
        "input_size": config["input_size"],
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": "bicubic",
        "crop_mode": "center",
        "crop_pct": round(crop * data.get("crop_pct", 1.0), 6),
    }
    model = model.to(memory_format=torch.contiguous_format)
    save_for_hf(model, str(folder), safe_serialization=True, data_config=data_config)


def _write_texts(
    folder: Path, run: Run, record: dict[str, Any], history: list[dict[str, Any]], card: str
) -> None:
    """Write a run's text files, and finally `run.json` with the digests of the other files."""
    lines = [json.dumps(epoch) + "\n" for epoch in history]
    (folder / "history.jsonl").write_text("".join(lines))
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    (folder / CARD).write_text(card, encoding="utf-8")
    record = {
        "id": run.id,
        **record,
        "settings": run.settings,
        "versions": versions(),
        "sha256": digests,
    }
    (folder / "run.json").write_text(json.dumps(with_checksum(record), indent=1) + "\n")


def _damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file of a run that cannot be read."""
    return UserError(
        f"{path} is damaged ({error}); delete its folder, and `distill run` trains the run again"
    )


def _short_digest(identity: dict[str, Any]) -> str:
    """Return an eight-digit hash of an identity, for file names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
