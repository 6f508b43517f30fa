"""Checkpoints and snapshots of runs that still train.

While a run trains, `models/<id>.partial` is its last checkpoint: one file, which every new
checkpoint replaces. The folder `models/<id>.epochs/` holds its snapshots so far: weights that the
finished run keeps for analysis.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill.storage.files import (
    atomic_write,
    read_safetensors,
    read_tree,
    tensors_digest,
    write_tree,
)


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints and snapshots of all runs that still train.

    Attributes:
        root: the folder of these files.
    """

    root: Path

    def save(self, run_id: str, state: dict[str, Any]) -> None:
        """Replace a run's checkpoint.

        Args:
            run_id: the run.
            state: nested dictionaries and lists of tensors and JSON values.

        Raises:
            UserError: if the file cannot be written.
        """
        write_tree(self._checkpoint_path(run_id), state)

    def load(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's checkpoint, or None if there is none.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        return read_tree(self._checkpoint_path(run_id))

    def save_snapshot(self, run_id: str, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Store the weights of a network after `epoch` epochs.

        Raises:
            UserError: if the file cannot be written.
        """
        path = self._snapshot_folder(run_id) / f"epoch-{epoch:04d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors refuses tensors that share memory or are not contiguous.
        copies = {}
        for name, weight in weights.items():
            copies[name] = weight.detach().clone(memory_format=torch.contiguous_format)
        with atomic_write(path) as temporary:
            save_file(copies, temporary, metadata={"sha256": tensors_digest(copies)})

    def snapshots(self, run_id: str) -> dict[int, Path]:
        """Return a run's snapshots so far, by their number of epochs."""
        paths = self._snapshot_folder(run_id).glob("epoch-*.safetensors")
        return {epoch_of(path.name): path for path in sorted(paths)}

    def damaged_snapshot(self, run_id: str) -> Path | None:
        """Return the path of a damaged snapshot, or None if there is none."""
        for path in self.snapshots(run_id).values():
            if _is_damaged(path):
                return path
        return None

    def forget(self, run_id: str) -> None:
        """Remove a run's checkpoint and snapshots."""
        self._checkpoint_path(run_id).unlink(missing_ok=True)
        shutil.rmtree(self._snapshot_folder(run_id), ignore_errors=True)

    def _checkpoint_path(self, run_id: str) -> Path:
        return self.root / f"{run_id}.partial"

    def _snapshot_folder(self, run_id: str) -> Path:
        return self.root / f"{run_id}.epochs"


def epoch_of(name: str) -> int:
    """Return the number of trained epochs of a snapshot, from its file name."""
    return int(name.removeprefix("epoch-").removesuffix(".safetensors"))


def _is_damaged(snapshot: Path) -> bool:
    """Return whether a snapshot cannot be read or does not match its checksum."""
    try:
        tensors, metadata = read_safetensors(snapshot)
    except (OSError, SafetensorError):
        return True
    return metadata.get("sha256") != tensors_digest(tensors)
