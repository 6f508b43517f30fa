"""The context of a study: recipe, data, storage and devices, made once and passed on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import nn

from distill.data.splits import Splits
from distill.devices.distributed import Distributed
from distill.errors import UserError
from distill.models.factory import ModelSpec, build_model, load_run_model, pretrained_size
from distill.recipe.schema import Arm, Recipe
from distill.storage.run_fingerprint import Run
from distill.storage.run_store import RunStore
from distill.storage.study_results import StudyResults
from distill.study.progress import Progress
from distill.study.run_locks import NoLocks, RunLocks

HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StudyContext:
    """What every part of a study works with.

    Attributes:
        recipe: the study.
        splits: its training, validation and test images.
        store: where runs are stored.
        accelerator: device, precision and processes.
        progress: bars and log lines for the person who waits.
        run_locks: which runs are this job's to train, where several jobs share a study.
        tracked: ids of the runs that this process has reported to trackers.
        on_results: is called with the results as soon as training ends, before the networks are
            analysed.
        build_notes: for each arm that was built, sentences on where its weights come from.
        has_weights: whether networks get their pretrained weights; a plan needs none.
    """

    recipe: Recipe
    splits: Splits
    store: RunStore
    accelerator: Accelerator
    progress: Progress
    run_locks: RunLocks | NoLocks = field(default_factory=NoLocks)
    tracked: set[str] = field(default_factory=set)
    on_results: Callable[[StudyResults], None] | None = None
    build_notes: dict[str, list[str]] = field(default_factory=dict)
    has_weights: bool = True

    @cached_property
    def processes(self) -> Distributed:
        """Return all processes of this job."""
        return Distributed(self.accelerator)

    @property
    def half_precision(self) -> torch.dtype | None:
        """Return the 16-bit type that networks compute in, None for float32."""
        return HALF_PRECISIONS.get(self.accelerator.mixed_precision)

    def view_shape(self, arm: Arm) -> tuple[int, int, int]:
        """Return channels, height and width of an arm's views.

        Raises:
            UserError: if the crop is larger than the images.
        """
        channels, height, width = self.splits.shape
        crop = arm.augment.crop
        if crop is None:
            return channels, height, width
        if crop > min(height, width):
            raise UserError(
                f"{arm.name}: augment.crop {crop} is larger than the images ({height}×{width})"
            )
        return channels, crop, crop

    def build(self, arm: Arm, seed: int | None) -> nn.Module:
        """Return the network of an arm with its initial weights, on the CPU."""
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
            pretrained=arm.pretrained and self.has_weights,
            checkpoint=arm.checkpoint if self.has_weights else None,
            frozen=arm.frozen,
        )
        if spec.pretrained and arm.name not in self.build_notes:
            # A download, or the attempts of one without a connection, may take a minute.
            self.progress.log(f"{arm.name}: loading the pretrained weights of {arm.model}")
        notes: list[str] = []
        model = build_model(spec, seed or 0, notes)
        self.build_notes[arm.name] = [f"{arm.name}: {note}" for note in notes]
        return model

    def load(self, run: Run) -> nn.Module:
        """Return the stored network of a run, on the device."""
        return load_run_model(self.store.folder(run.id)).to(self.accelerator.device)


def study_precision(recipe: Recipe) -> str | None:
    """Return the one precision of a study, None for the launcher's.

    Raises:
        UserError: if arms ask for different precisions: a process has one.
    """
    precisions = {arm.train.precision for arm in recipe.arms}
    if len(precisions) > 1:
        raise UserError(
            "train.precision must be the same for all arms of a study: a process has one precision"
        )
    return precisions.pop()
