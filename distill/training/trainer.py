"""The training loop: the students of a cohort, side by side on one stream of views.

A view is an augmented image; a cohort is a set of runs that train together. Each batch of views is
made once, each teacher runs on it once, and every student takes a step on it.

No random state carries over from one step to the next: each step derives its random numbers from
the seed and the position in training (epoch, step, micro-batch, process). So, on the same number of
processes, a run ends with the same weights in any cohort and after any interruption. On a CPU they
are bit-equal.
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
from distill.training.meters import EpochMeans, MicroBatchRecord
from distill.training.state import TrainContext, TrainState, memory_format_of
from distill.training.step_inputs import (
    NormalisedInputs,
    TeacherOutputs,
    micro_batches,
    seed_dropout,
)

# Number of steps between two checks whether all losses are finite and whether a checkpoint is due.
# A check synchronises with the device, which would be too slow after every step.
CHECK_EVERY = 100

EpochLog = Callable[[int, float, list[TrainState]], None]
"""Called after each epoch with the epochs done, images per second, and the remaining students."""


def fit(
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    ctx: TrainContext,
    log_epoch: EpochLog,
) -> None:
    """Train a cohort to its last epoch.

    A student whose loss or logits are not finite leaves the cohort, with the reason in `failure`.
    The others continue. The caller stores the finished runs.

    Args:
        students: the students of one cohort. They have the same seed, views, batch size,
            `accumulate`, memory format and epochs, and are at the same step of the same epoch.
        teachers: the networks that the students learn from, by run id.
        ctx: data, storage, device and processes.
        log_epoch: called after each epoch.
    """
    train = students[0].train
    timer = CheckpointTimer(train.checkpoint_minutes)
    for epoch in range(students[0].epoch, train.epochs):
        clock = EpochClock(students, ctx)
        students = train_epoch(students, teachers, epoch, ctx, timer, clock)
        if not students:
            return

        # Validation counts towards the time of a run, but not towards the images per second.
        means = [student.meters.means(clock.images_per_epoch, ctx.dist) for student in students]
        images_per_second = clock.images_per_second()
        for student, student_means in zip(students, means, strict=True):
            finish_epoch(student, student_means, ctx)
        clock.charge_time(students)

        students = [student for student in students if not student.failure]
        if not students:
            return
        # At the end of an epoch only process 0 writes, so the processes need not agree here.
        if epoch + 1 < train.epochs and timer.is_due():
            save_checkpoints(students, ctx)
            timer.restart()
        log_epoch(epoch + 1, images_per_second, students)


def train_epoch(
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    epoch: int,
    ctx: TrainContext,
    timer: CheckpointTimer,
    clock: EpochClock,
) -> list[TrainState]:
    """Train one epoch, or the rest of one; return the students whose losses are finite."""
    first = students[0]
    first_step = first.step  # 0, unless the runs resume within an epoch
    is_whole = first_step == 0
    for student in students:
        if is_whole:
            save_snapshot(student, ctx)
        student.begin_epoch()
    for teacher in teachers.values():
        # Only a whole epoch of logits can be cached.
        teacher.begin_epoch(epoch, ctx.device, whole=is_whole)

    batches = training_batches(
        ctx.splits,
        first.run.arm.augment,
        batch_size=ctx.global_batch_size(first.train),
        seed=first.run.seed,
        epoch=epoch,
        device=ctx.device,
        rank=ctx.dist.rank,
        world=ctx.dist.world_size,
        first=first_step,
    )
    for step, batch in enumerate(batches, first_step):
        train_step(students, teachers, batch, step, ctx)

        is_last_step = step + 1 == first.steps_per_epoch
        if is_last_step or (step + 1) % CHECK_EVERY == 0:
            students, checkpoint_is_due = drop_diverged(
                students, ctx, checkpoint_is_due=timer.is_due()
            )
            if not students:
                return []
            if checkpoint_is_due and not is_last_step and can_checkpoint(students, ctx):
                clock.charge_time(students)
                checkpoint_within_epoch(students, step, ctx)
                timer.restart()
                # Writing a checkpoint is not training time.
                clock.exclude_since_last_charge()
    for teacher in teachers.values():
        # If all students of a teacher have diverged, its logits are incomplete and are not cached.
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

    Nothing here waits for the device, except fp16's gradient scaler and the occasional write of
    many teacher logits to the cache.

    Args:
        students: the students of the cohort.
        teachers: the teachers, by run id.
        batch: this process's part of the batch.
        step: number of the step in the epoch, from 0.
        ctx: data, device and processes.
    """
    train = students[0].train
    steps_per_epoch = students[0].steps_per_epoch
    global_step = students[0].epoch * steps_per_epoch + step
    # Some loss weights and temperatures change over training.
    progress = global_step / (steps_per_epoch * train.epochs)
    global_batch_size = ctx.global_batch_size(train)

    for student in students:
        student.zero_grad()

    # `accumulate` cuts the batch into parts that go through the networks one after another.
    for micro in micro_batches(batch, train.accumulate):
        inputs = NormalisedInputs(micro.views, memory_format_of(train))
        teacher_outputs = TeacherOutputs(teachers, inputs, micro, step)
        for student in students:
            # A teacher runs when its first student needs it: frozen, without gradients, in its own
            # precision.
            learned_from = teacher_outputs.for_student(student)
            seed_dropout(student, global_step, micro.number, ctx)
            # The processes average their gradients once per step, in its last backward pass.
            with student.sync_gradients(ctx.accelerator, only_if=micro.is_last):
                with ctx.accelerator.autocast():
                    outputs = student.forward(inputs.for_model(student.model))
                # Losses run outside autocast, which would undo their cast to float32.
                loss, terms = student.loss(
                    outputs,
                    micro.labels,
                    learned_from,
                    batch_size=global_batch_size,
                    progress=progress,
                )
                student.backward(loss, ctx.dist)
            # The loss is this micro-batch's sum over images, divided by the global batch size.
            record = MicroBatchRecord(step, loss.detach() * global_batch_size, terms)
            student.meters.update(record, outputs.logits.detach(), micro.labels)

    for student in students:
        # Unscale, clip, step, moving average, learning rate.
        student.optimizer_step(global_step, ctx.dist)


# -------------------------------------------------------------------------- divergence, checkpoints


def drop_diverged(
    students: list[TrainState], ctx: TrainContext, *, checkpoint_is_due: bool
) -> tuple[list[TrainState], bool]:
    """Drop students whose loss was NaN or infinite since the last check.

    The decision about a checkpoint is part of the same message, so that the processes and the
    device synchronise only once.

    Returns:
        the remaining students, and process 0's decision about a checkpoint, which all processes
        follow.
    """
    finite = [student.meters.recent_are_finite() for student in students]
    has_diverged = torch.stack([(~is_finite).any() for is_finite in finite]).float()
    is_due = float(checkpoint_is_due and ctx.dist.is_main)
    decision = torch.tensor([is_due], device=has_diverged.device)
    *diverged, due = ctx.dist.sum(torch.cat([has_diverged, decision])).tolist()

    for student, is_finite, processes_with_nan in zip(students, finite, diverged, strict=True):
        if processes_with_nan > 0:
            student.failure = divergence_message(student, is_finite)
        student.meters.recent = []
    return [student for student in students if not student.failure], due > 0


def divergence_message(student: TrainState, is_finite: Tensor) -> str:
    """Return the message about a student that diverged: where, and what to change.

    Args:
        student: the student that diverged.
        is_finite: whether the loss of each recent micro-batch on this process was finite; all True
            if the student diverged on another process.
    """
    where = "on another process"
    if not is_finite.all():
        record = student.meters.recent[int(is_finite.long().argmin())]
        terms = ", ".join(f"{name} {value.item():g}" for name, value in record.terms.items())
        where = (
            f"step {record.step + 1} of {student.steps_per_epoch} (terms, summed over the images "
            f"of a micro-batch: {terms})"
        )
    return (
        f"{student.run.display_name}: the loss is not finite in epoch {student.epoch + 1}, "
        f"{where}; lower train.lr, or clip gradients with train.clip_grad"
    )


def can_checkpoint(students: list[TrainState], ctx: TrainContext) -> bool:
    """Return whether a checkpoint within an epoch would be complete.

    It would be incomplete if a loss module accumulates statistics over the epoch, such as class
    means, and each process has only its own part of them.
    """
    return ctx.dist.is_single or not any(student.has_process_state for student in students)


def checkpoint_within_epoch(students: list[TrainState], step: int, ctx: TrainContext) -> None:
    """Store a checkpoint of every student after the step with this number."""
    for student in students:
        student.step = step + 1
        # Process 0 takes all sums and the others restart from zero, so that nothing counts twice.
        student.meters.move_to_main(ctx.dist)
    save_checkpoints(students, ctx)


def save_checkpoints(students: list[TrainState], ctx: TrainContext) -> None:
    """Store a checkpoint of every student; process 0 writes it."""
    if ctx.dist.is_main:
        for student in students:
            save_checkpoint(student, ctx.store)


def save_snapshot(student: TrainState, ctx: TrainContext) -> None:
    """Store the weights before this epoch (averaged ones, if any), if the recipe asks for it.

    There is no snapshot after the last epoch: the finished run stores those weights.
    """
    if ctx.dist.is_main and student.epoch in student.train.snapshot_epochs:
        weights = student.eval_model.state_dict()
        ctx.store.checkpoints.save_snapshot(student.run.id, student.epoch, weights)


# ----------------------------------------------------------------------------------- after an epoch


def finish_epoch(student: TrainState, means: EpochMeans, ctx: TrainContext) -> None:
    """Move a student to its next epoch, evaluate it on the validation split, extend its history."""
    student.end_epoch(ctx.dist)  # advances student.epoch, sets student.step to 0
    split = ctx.splits.validation
    # Each process predicts a part of the split, and all processes get all logits.
    logits = predict(
        student.eval_model,
        ctx.splits,
        split,
        student.run.arm.augment,
        ctx.device,
        dist=ctx.dist,
    )
    if not logits.isfinite().all():
        student.failure = (
            f"{student.run.display_name}: the validation logits are not finite after epoch "
            f"{student.epoch}; lower train.lr"
        )
        return
    student.history.append(history_entry(student, means, logits, split.labels))
