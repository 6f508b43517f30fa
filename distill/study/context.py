"""What every part of a study works with: recipe, data, store, device."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, SharedDict
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from distill.data.splits import Splits
from distill.errors import UserError, suggest
from distill.models.factory import ModelSpec, build_model, load_run_model, pretrained_size
from distill.recipe.schema import Arm, Recipe
from distill.storage.run import Run
from distill.storage.run_store import RunStore
from distill.study.progress import Progress
from distill.study.run_locks import RunLocks


@dataclass
class StudyContext:
    """What every part of a study works with: made once, passed on."""

    recipe: Recipe
    splits: Splits
    store: RunStore
    accelerator: Accelerator
    progress: Progress
    claims: RunLocks | None = None  # where several jobs share out a study
    tracked: set[str] = field(
        default_factory=set
    )  # ids of runs that this process trains, where there are trackers

    @property
    def half(self) -> torch.dtype | None:
        """The half precision of the study, if it has one."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)

    def view_shape(self, arm: Arm) -> tuple[int, int, int]:
        """Channels, height and width of an arm's views."""
        channels, height, width = self.splits.shape
        side = arm.augment.crop
        if side and side > min(height, width):
            raise UserError(
                f"{arm.name}: augment.crop {side} is larger than the images ({height}×{width})"
            )
        return channels, side or height, side or width

    def build(self, arm: Arm, seed: int | None) -> nn.Module:
        """The network of an arm, with its initial weights."""
        mean, std = self.splits.normalisation
        size = (arm.input_size, arm.input_size) if arm.input_size else pretrained_size(arm)
        spec = ModelSpec(
            arm.model,
            num_classes=len(self.splits.class_names),
            view_shape=self.view_shape(arm),
            mean=mean,
            std=std,
            model_args=arm.model_args,
            input_size=size,
            class_names=self.splits.class_names,
            pretrained=arm.pretrained,
            checkpoint=arm.checkpoint,
            frozen=arm.frozen,
        )
        return build_model(spec, seed or 0)

    def load(self, run: Run) -> nn.Module:
        """The stored network of a run, on the device."""
        return load_run_model(self.store.folder(run.id)).to(self.accelerator.device)


def make_accelerator(
    precision: str | None, trackers: Iterable[str] = (), out: Path | None = None
) -> Accelerator:
    """The one accelerator of a process: device, precision and, under a launcher, the other processes.

    Args:
        precision: of the study, None for the launcher's.
        trackers: names of accelerate's trackers.
        out: where those that write files put them.

    Raises:
        UserError: if a tracker is unknown or not installed.
    """
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                f"--track {name}: unknown tracker; {suggest(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise UserError(
                f"--track {name}: its package is not installed; pip install {name.replace('_', '-')}"
            )
    # accelerate has one precision a process and would refuse another, or use the first in silence; accelerators
    # that exist keep their state
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision.lower() != _wanted(
        precision
    ):
        AcceleratorState._shared_state = SharedDict()
    processes = InitProcessGroupKwargs(
        timeout=timedelta(days=7)
    )  # whole runs are trained between two barriers
    return Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision=precision,
        kwargs_handlers=[processes],
        log_with=list(trackers) or None,
        project_dir=out,
    )


def idle_cores(accelerator: Accelerator) -> list[str]:
    """A hint where a launcher has left CPU cores idle: accelerate's gives a process one thread if it is not told."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    if accelerator.device.type != "cpu" or not launched or torch.get_num_threads() > 1 or share < 2:
        return []
    return [
        f"the launcher gave this process 1 CPU thread of {share}: OMP_NUM_THREADS={share} before the command uses "
        "them all"
    ]


def _wanted(precision: str | None) -> str:
    """A precision with the launcher's where there is none."""
    return precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def study_precision(recipe: Recipe) -> str | None:
    """The one precision of a study, None for the launcher's."""
    precisions = {arm.train.precision for arm in recipe.arms}
    if len(precisions) > 1:
        raise UserError("train.precision is one for the whole study: a process has one precision")
    return precisions.pop()
