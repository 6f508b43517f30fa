"""The inputs of one training step: micro-batches, normalised views, teachers' outputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.augment import derive_seed, normalise
from distill.data.loaders import Batch
from distill.losses import Outputs, ensemble
from distill.models.factory import input_config
from distill.training.cached_teacher import CachedTeacher
from distill.training.state import TrainContext, TrainState


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch that goes through the networks at once (gradient accumulation).

    Attributes:
        views: `[B, C, H, W]`, pixels in [0, 255].
        labels: `[B]`, or `[B, K]` after mixup or cutmix.
        number: number of this part in its batch, from 0.
        first: index of its first image in this process's part of the batch.
        is_last: whether this is the last part of the batch.
    """

    views: Tensor
    labels: Tensor
    number: int
    first: int
    is_last: bool


def micro_batches(batch: Batch, accumulate: int) -> Iterator[MicroBatch]:
    """Cut a batch into `accumulate` parts."""
    first = 0
    parts = zip(batch.views.chunk(accumulate), batch.labels.chunk(accumulate), strict=True)
    for number, (views, labels) in enumerate(parts):
        is_last = first + len(views) == len(batch.views)
        yield MicroBatch(views, labels, number, first, is_last)
        first += len(views)


class NormalisedInputs:
    """The views of a micro-batch, normalised and resized for each network.

    Networks with equal settings share a tensor.
    """

    def __init__(self, views: Tensor, memory_format: torch.memory_format) -> None:
        self.views = views
        self.memory_format = memory_format
        self.made: dict[Any, Tensor] = {}

    def for_model(self, model: nn.Module) -> Tensor:
        """Return the views with the normalisation and the image size that a network expects."""
        mean, std, size = input_config(model)
        key = (mean, std, size)
        if key not in self.made:
            inputs = normalise(self.views, mean, std, size)
            self.made[key] = inputs.contiguous(memory_format=self.memory_format)
        return self.made[key]


class TeacherOutputs:
    """The teachers' outputs for a micro-batch.

    Each teacher runs once, however many students learn from it.
    """

    def __init__(
        self,
        teachers: dict[str, CachedTeacher],
        inputs: NormalisedInputs,
        micro: MicroBatch,
        step: int,
    ) -> None:
        self.teachers = teachers
        self.inputs = inputs
        self.micro = micro
        self.step = step
        self.of_teacher: dict[str, Outputs] = {}
        self.of_ensemble: dict[tuple[str, ...], Outputs] = {}

    def for_student(self, student: TrainState) -> Outputs | None:
        """Return the outputs of a student's teacher or ensemble; None if it has no teacher."""
        ids = student.teacher_ids
        if not ids:
            return None
        if ids not in self.of_ensemble:
            self.of_ensemble[ids] = ensemble([self._run(teacher_id) for teacher_id in ids])
        return self.of_ensemble[ids]

    def _run(self, teacher_id: str) -> Outputs:
        if teacher_id not in self.of_teacher:
            teacher = self.teachers[teacher_id]
            self.of_teacher[teacher_id] = teacher(
                lambda: self.inputs.for_model(teacher.model),
                step=self.step,
                first=self.micro.first,
                count=len(self.micro.views),
            )
        return self.of_teacher[teacher_id]


def seed_dropout(student: TrainState, global_step: int, part: int, ctx: TrainContext) -> None:
    """Seed the random generators of dropout from (run's seed, step, part, process).

    This seeds only the generators of the CPU and of this device. `torch.manual_seed` would seed all
    devices, which takes 0.4 ms.
    """
    seed = derive_seed("dropout", student.run.seed, global_step, part, ctx.dist.rank)
    torch.default_generator.manual_seed(seed)
    if ctx.device.type != "cpu":
        getattr(torch, ctx.device.type).manual_seed(seed)
