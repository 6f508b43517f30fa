"""The training loop: the students of a cohort, side by side on one stream of views.

A view is an augmented image; a cohort is a set of runs that train together. Each batch of views is
made once, each teacher runs on it once, and every student takes a step on it.

No random state is kept between steps: all randomness is drawn anew from the seed and the position
in training (epoch, step, micro-batch, process). So, on the same number of processes, a run ends
with the same weights in any cohort and after any interruption; on a CPU they are bit-equal.
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

# Steps between two checks of the students: are their losses finite, is a checkpoint due? A check
# waits for the device, so it is not made after every step.
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

    A student whose loss or logits are not finite leaves the cohort, with the reason in `failure`;
    the others go on. The caller stores the finished runs.

    Args:
        students: of one cohort, so with equal seed, views, batch size, `accumulate`, memory format
            and epochs; all of them at the same step of the same epoch.
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
        # Process 0 alone writes at the end of an epoch, so here the processes need not agree.
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
        # The logits of a teacher whose students have all diverged are incomplete: not cached.
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

    Nothing here waits for the device, except for fp16's loss scaler, and now and then when many
    teacher logits are written to the cache.

    Args:
        students: of the cohort.
        teachers: by run id.
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
            # Frozen, without gradients, in its own precision; run when its first student needs it.
            learned_from = teacher_outputs.for_student(student)
            seed_dropout(student, global_step, micro.number, ctx)
            # Between processes, gradients are averaged once: in the last backward of the step.
            with student.sync_gradients(ctx.accelerator, only_if=micro.is_last):
                with ctx.accelerator.autocast():
                    outputs = student.forward(inputs.for_model(student.model))
                # A loss casts its inputs to float32, which autocast would undo.
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

    Whether a checkpoint is due travels with it, so that there is one wait for the device, and one
    message between the processes.

    Returns:
        the other students; and process 0's decision about a checkpoint, so that all agree.
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
    """Return what to tell about a student that diverged.

    Args:
        student: that diverged.
        is_finite: whether the loss of each recent micro-batch on this process was finite; all of
            them were if it happened on another process.
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

    It would not be if a loss module gathers something over the epoch, such as class means, and each
    process has only its own part of it.
    """
    return ctx.dist.is_single or not any(student.has_process_state for student in students)


def checkpoint_within_epoch(students: list[TrainState], step: int, ctx: TrainContext) -> None:
    """Store a checkpoint of every student after the step with this number."""
    for student in students:
        student.step = step + 1
        # Process 0 gets all sums, and the others start from zero again: nothing counts twice.
        student.meters.move_to_main(ctx.dist)
    save_checkpoints(students, ctx)


def save_checkpoints(students: list[TrainState], ctx: TrainContext) -> None:
    """Store a checkpoint of every student; process 0 writes it."""
    if ctx.dist.is_main:
        for student in students:
            save_checkpoint(student, ctx.store)


def save_snapshot(student: TrainState, ctx: TrainContext) -> None:
    """Keep the network (its averaged weights, if any) before this epoch, if the recipe wants it.

    There is none after the last epoch: those weights are the run's own.
    """
    if ctx.dist.is_main and student.epoch in student.train.snapshot_epochs:
        weights = student.eval_model.state_dict()
        ctx.store.checkpoints.save_snapshot(student.run.id, student.epoch, weights)


# ----------------------------------------------------------------------------------- after an epoch


def finish_epoch(student: TrainState, means: EpochMeans, ctx: TrainContext) -> None:
    """Move a student to its next epoch, evaluate it on the validation split, extend its history."""
    student.end_epoch(ctx.dist)  # advances student.epoch, sets student.step to 0
    split = ctx.splits.validation
    # Each process predicts a part of the split, and all get all logits.
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
            f"{student.run.display_name}: the logits are not finite after epoch {student.epoch}; "
            "lower train.lr"
        )
        return
    student.history.append(history_entry(student, means, logits, split.labels))
