"""The training loop: the students of a cohort, side by side on one stream of views.

Each batch of views is made once, each teacher runs on it once, and every student takes a step on
it. Views, the order of images and dropout are functions of (seed, epoch, step), and no random state
is kept between steps. So a run ends with the same weights in any cohort, and after any
interruption.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distill.data.loaders import Batch, training_batches
from distill.evaluation.predict import predict
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import CheckpointTimer, save_checkpoint
from distill.training.clock import EpochClock
from distill.training.history import history_entry
from distill.training.meters import EpochMeans, StepRecord
from distill.training.state import TrainContext, TrainState, memory_format_of
from distill.training.step_inputs import (
    NormalisedInputs,
    TeacherOutputs,
    micro_batches,
    seed_dropout,
)

# Steps between two checks for losses that are not finite, and for a checkpoint that is due. A check
# waits for the device.
CHECK_EVERY = 100

EpochLog = Callable[[int, float, list[TrainState]], None]
"""Called after each epoch with the epochs done, images per second, and the students."""


def fit(
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    ctx: TrainContext,
    log_epoch: EpochLog,
) -> None:
    """Train a cohort to its last epoch.

    A student whose loss or logits are not finite leaves the cohort, with the reason in `failure`;
    the others go on.

    Args:
        students: of one seed, with equal views, batch size and epochs, all at the same step of the
            same epoch.
        teachers: the networks that the students learn from, by run id.
        ctx: data, storage, device and processes.
        log_epoch: called after each epoch.
    """
    train = students[0].train
    timer = CheckpointTimer(train.checkpoint_minutes)
    for epoch in range(students[0].epoch, train.epochs):
        clock = EpochClock(students)
        students = train_epoch(students, teachers, ctx, timer, clock)
        if not students:
            return
        means = [student.meters.means(clock.images(ctx), ctx.dist) for student in students]
        images_per_second = clock.images_per_second(ctx)
        for student, student_means in zip(students, means, strict=True):
            validate(student, student_means, ctx)
        clock.share_time(students)
        students = [student for student in students if not student.failure]
        if not students:
            return
        if epoch + 1 < train.epochs and timer.is_due():
            save_checkpoints(students, ctx)
            timer.restart()
        log_epoch(epoch + 1, images_per_second, students)


def train_epoch(
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    ctx: TrainContext,
    timer: CheckpointTimer,
    clock: EpochClock,
) -> list[TrainState]:
    """Train one epoch, or the rest of one; return the students whose losses are finite."""
    first = students[0]
    train = first.train
    epoch = first.epoch
    first_step = first.step
    for student in students:
        if first_step == 0:
            save_snapshot(student, ctx)
        student.begin_epoch()
    for teacher in teachers.values():
        teacher.begin_epoch(epoch, ctx.device, whole=first_step == 0)

    batches = training_batches(
        ctx.splits,
        first.run.arm.augment,
        ctx.batch_size(train),
        first.run.seed,
        epoch,
        ctx.device,
        ctx.dist.rank,
        ctx.dist.world_size,
        first_step,
    )
    for step, batch in enumerate(batches, first_step):
        train_step(students, teachers, batch, step, ctx)

        is_last_step = step + 1 == first.steps_per_epoch
        if (step + 1) % CHECK_EVERY != 0 and not is_last_step:
            continue
        students, checkpoint_is_due = drop_diverged(students, ctx, is_due=timer.is_due())
        if not students:
            return []
        if checkpoint_is_due and not is_last_step and can_checkpoint(students, ctx):
            clock.share_time(students)
            for student in students:
                student.step = step + 1
                student.meters.gather_to_main(ctx.dist)
            save_checkpoints(students, ctx)
            timer.restart()
            clock.skip()
    for teacher in teachers.values():
        teacher.end_epoch()
    return students


def train_step(
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    batch: Batch,
    step: int,
    ctx: TrainContext,
) -> None:
    """Take one optimizer step for every student, all on the same batch of views.

    Nothing here waits for the device, except now and then when many cached teacher logits are
    written.

    Args:
        students: of the cohort.
        teachers: by run id.
        batch: this process's part of the batch.
        step: number of the step in the epoch, from 0.
        ctx: data, device and processes.
    """
    first = students[0]
    train = first.train
    global_step = first.epoch * first.steps_per_epoch + step
    progress = global_step / (first.steps_per_epoch * train.epochs)
    batch_size = ctx.batch_size(train)

    for student in students:
        student.zero_grad()
    for micro in micro_batches(batch, train.accumulate):
        inputs = NormalisedInputs(micro.views, memory_format_of(train))
        teacher_outputs = TeacherOutputs(teachers, inputs, micro, step)
        for student in students:
            targets = teacher_outputs.of(student)
            seed_dropout(student, global_step, micro.number, ctx)
            with student.gradient_sync(ctx.accelerator, is_last=micro.is_last):
                with ctx.accelerator.autocast():
                    outputs = student.forward(inputs.of(student.model))
                loss, terms = student.loss(
                    outputs,
                    micro.labels,
                    targets,
                    batch_size=batch_size,
                    progress=progress,
                )
                student.backward(loss, ctx.dist)
            record = StepRecord(step, loss.detach() * batch_size, terms)
            student.meters.update(record, outputs.logits.detach(), micro.labels)
    for student in students:
        student.optimizer_step(global_step, ctx.dist)


# -------------------------------------------------------------------------- divergence, checkpoints


def drop_diverged(
    students: list[TrainState], ctx: TrainContext, *, is_due: bool
) -> tuple[list[TrainState], bool]:
    """Drop students whose loss was NaN or infinite since the last check.

    Returns:
        the other students; and process 0's decision whether a checkpoint is due, so that all
        processes agree.
    """
    losses = [
        torch.stack([record.loss for record in student.meters.recent]) for student in students
    ]
    flags = torch.stack([(~own.isfinite()).any() for own in losses]).float()
    decision = torch.tensor([float(is_due and ctx.dist.is_main)], device=flags.device)
    *diverged, checkpoint_is_due = ctx.dist.sum(torch.cat([flags, decision])).tolist()
    for student, own, has_diverged in zip(students, losses, diverged, strict=True):
        if has_diverged:
            student.failure = _divergence_message(student, own.isfinite())
        student.meters.recent = []
    return [student for student in students if not student.failure], checkpoint_is_due > 0


def _divergence_message(student: TrainState, is_finite: Tensor) -> str:
    """Return a message with the first step whose loss was not finite, if it was on this process."""
    record = student.meters.recent[int(is_finite.long().argmin())]
    where = "on another process"
    if not is_finite.all():
        where = f"step {record.step + 1} of {student.steps_per_epoch}"
    terms = ", ".join(f"{name} {value.item():g}" for name, value in record.terms.items())
    return (
        f"{student.run.display_name}: the loss is not finite in epoch {student.epoch + 1}, {where} "
        f"(terms, summed over the batch: {terms}); lower train.lr, or clip gradients with "
        "train.clip_grad"
    )


def can_checkpoint(students: list[TrainState], ctx: TrainContext) -> bool:
    """Return whether a checkpoint within an epoch would be complete.

    It is not where loss modules gather something over the epoch and each process has only its own
    part of it.
    """
    return ctx.dist.is_single or not any(student.has_process_state for student in students)


def save_checkpoints(students: list[TrainState], ctx: TrainContext) -> None:
    """Store a checkpoint of every student, once for all processes that share it."""
    if ctx.dist.is_main:
        for student in students:
            save_checkpoint(student, ctx.store)


def save_snapshot(student: TrainState, ctx: TrainContext) -> None:
    """Keep the network as it is before this epoch, if the recipe wants a snapshot of it."""
    if ctx.dist.is_main and student.epoch in student.train.snapshot_epochs:
        weights = student.final_model.state_dict()
        ctx.store.checkpoints.save_snapshot(student.run.id, student.epoch, weights)


# ----------------------------------------------------------------------------------- after an epoch


def validate(student: TrainState, means: EpochMeans, ctx: TrainContext) -> None:
    """End a student's epoch: evaluate it on the validation split and extend its history."""
    student.end_epoch(ctx.dist)
    split = ctx.splits.validation
    logits = predict(
        student.final_model,
        ctx.splits,
        split,
        student.run.arm.augment,
        ctx.device,
        dist=ctx.dist,
    )
    if not logits.isfinite().all():
        student.failure = (
            f"{student.run.display_name}: the logits are not finite after epoch {student.epoch}; "
            "lower train.lr"
        )
        return
    student.history.append(history_entry(student, means, logits, split.labels))
