"""Train one cohort: build networks, connect teachers to the logit cache, fit, store runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.devices.distributed import ONE_PROCESS
from distill.errors import UserError
from distill.evaluation.metrics import fitted_temperature
from distill.evaluation.predict import accuracy, predict_all
from distill.export.model_card import model_card
from distill.models.factory import blank_images, parameter_count
from distill.storage.run_fingerprint import Run
from distill.study.context import StudyContext
from distill.study.logit_cache_plan import teacher_logits_identity, teacher_outputs_needed
from distill.study.tracking import track_epoch
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import restore_checkpoint
from distill.training.logit_cache import LogitCache
from distill.training.logit_codec import choose_codec
from distill.training.state import (
    TrainContext,
    TrainState,
    create_train_state,
    memory_format_of,
    steps_per_epoch,
)
from distill.training.teacher import NotNumbersError, Teacher, refuse_nan
from distill.training.trainer import fit

LONGEST_TITLE = 4


def train_cohort(ctx: StudyContext, cohort: list[Run], *, data_parallel: bool) -> dict[str, str]:
    """Train the runs of a cohort to their last epoch and store them.

    Args:
        ctx: the study's context.
        cohort: runs of one seed with equal views, batches and epochs.
        data_parallel: whether all processes share each batch.

    Returns:
        the reasons of failed runs, by run id.
    """
    dist = ctx.processes if data_parallel else ONE_PROCESS
    train_ctx = TrainContext(ctx.splits, ctx.store, ctx.accelerator, dist)
    teachers = _load_teachers(ctx, cohort)
    students = []
    for run in cohort:
        student = create_train_state(run, ctx.build(run.arm, run.seed), teachers, train_ctx)
        restore_checkpoint(student, train_ctx, ctx.progress.log)
        students.append(student)
    with _cached_teachers(ctx, cohort, teachers, train_ctx) as cached_teachers:
        for group in _group_by_step(students):
            _fit_group(ctx, group, cached_teachers, train_ctx)
    failed = {}
    for student in students:
        if student.failure:
            failed[student.run.id] = student.failure
            ctx.progress.log(student.failure)
            continue
        try:
            _evaluate_and_store(ctx, student, train_ctx)
        except NotNumbersError as error:
            failed[student.run.id] = str(error)
            ctx.progress.log(str(error))
    return failed


def _group_by_step(students: list[TrainState]) -> list[list[TrainState]]:
    """Group students that have reached the same step.

    There are two groups if the study was killed between the checkpoints of two students.
    """
    groups: dict[tuple[int, int], list[TrainState]] = {}
    for student in students:
        groups.setdefault((student.epoch, student.step), []).append(student)
    return [groups[key] for key in sorted(groups)]


def _fit_group(
    ctx: StudyContext,
    students: list[TrainState],
    teachers: dict[str, CachedTeacher],
    train_ctx: TrainContext,
) -> None:
    first = students[0]
    title = _title([student.run for student in students])
    with ctx.progress.epochs(
        title, first.train.epochs, done=first.epoch, steps_done=first.step
    ) as bar:

        def log_epoch(
            done: int, images_per_second: float, still_training: list[TrainState]
        ) -> None:
            accuracies = [student.history[-1]["validation"]["top1"] for student in still_training]
            bar.update(done, images_per_second, accuracies)
            track_epoch(ctx, still_training)

        fit(students, teachers, train_ctx, log_epoch)


def _title(cohort: list[Run]) -> str:
    """Return a short name for a cohort: its groups of arms, seed and number of runs."""
    names = list(dict.fromkeys(run.arm.name.split("/")[0] for run in cohort))
    if len(names) > LONGEST_TITLE:
        more = len(names) - LONGEST_TITLE + 1
        names = [*names[: LONGEST_TITLE - 1], f"{more} more"]
    runs = "1 run" if len(cohort) == 1 else f"{len(cohort)} runs"
    return f"{'+'.join(names)}, seed {cohort[0].seed}, {runs}"


# ----------------------------------------------------------------------------------------- teachers


def _load_teachers(ctx: StudyContext, cohort: list[Run]) -> dict[str, Teacher]:
    """Load the teachers of a cohort, by run id, with the outputs that the losses need."""
    needed: dict[str, set[str]] = {}
    runs: dict[str, Run] = {}
    for run in cohort:
        for teacher in run.teachers:
            runs[teacher.id] = teacher
            needed.setdefault(teacher.id, set()).update(teacher_outputs_needed(run))
    train = cohort[0].arm.train
    return {
        run_id: Teacher(
            ctx.load(runs[run_id]).to(memory_format=memory_format_of(train)),
            outputs,
            ctx.half_precision,
            compiled=train.compile,
        )
        for run_id, outputs in needed.items()
    }


@contextmanager
def _cached_teachers(
    ctx: StudyContext,
    cohort: list[Run],
    teachers: dict[str, Teacher],
    train_ctx: TrainContext,
) -> Iterator[dict[str, CachedTeacher]]:
    """Connect each teacher to its logit cache for the cohort's views, if only logits are needed."""
    train = cohort[0].arm.train
    data = ctx.recipe.data
    batch_size = train_ctx.global_batch_size(train)
    images_per_epoch = batch_size * steps_per_epoch(ctx.splits, train)
    cached_teachers = {}
    with ExitStack() as open_caches:
        for run_id, teacher in teachers.items():
            codec = choose_codec(teacher, blank_images(teacher.model), data.logit_cache)
            cache = None
            if not teacher.outputs:
                identity = teacher_logits_identity(
                    ctx, cohort[0], run_id, data_parallel=not train_ctx.dist.is_single
                )
                path = ctx.store.logit_cache_path(identity)
                cache = LogitCache(path, identity, images_per_epoch, codec, ctx.progress.log)
                if train_ctx.dist.is_main:
                    limit = data.logit_cache_gb * 1e9
                    open_caches.enter_context(cache.writing(train.epochs, limit))
            cached_teachers[run_id] = CachedTeacher(
                teacher,
                # Round freshly computed logits too, so that students learn the same with and
                # without a cache.
                codec=None if data.logit_cache == "exact" else codec,
                cache=cache,
                batch_size=batch_size,
                dist=train_ctx.dist,
            )
        yield cached_teachers


# ------------------------------------------------------------------------------------------ storing


def _evaluate_and_store(ctx: StudyContext, student: TrainState, train_ctx: TrainContext) -> None:
    predictions = predict_all(
        student.eval_model,
        ctx.splits,
        student.run.arm.augment,
        train_ctx.device,
        dist=train_ctx.dist,
    )
    # Every process checks, so that all of them know of the failure.
    refuse_nan(student.run.display_name, predictions)
    if train_ctx.dist.is_main:
        store_run(
            ctx,
            student.run,
            student.eval_model,
            predictions,
            seconds=student.seconds,
            history=student.history,
        )


def store_frozen_network(ctx: StudyContext, run: Run) -> None:
    """Evaluate a frozen network and store it like a trained one."""
    if not ctx.processes.is_main:
        return
    model = ctx.build(run.arm, None).to(ctx.accelerator.device)
    predictions = predict_all(model, ctx.splits, run.arm.augment, ctx.accelerator.device)
    refuse_nan(run.display_name, predictions)
    store_run(ctx, run, model, predictions, seconds=0.0, history=[])


def store_run(
    ctx: StudyContext,
    run: Run,
    model: nn.Module,
    predictions: dict[str, Tensor],
    *,
    seconds: float,
    history: list[dict[str, Any]],
) -> None:
    """Store a finished run with its predictions, its calibration temperature and its model card."""
    record = {
        "model": run.arm.model,
        "parameters": parameter_count(model),
        "epochs": 0 if run.arm.frozen else run.arm.train.epochs,
        "seconds": round(seconds, 3),
        "calibration_temperature": fitted_temperature(predictions),
        "notes": ctx.build_notes.get(run.arm.name, []),
    }
    teacher_accuracies = {}
    for teacher in run.teachers:
        stored = ctx.store.predictions(teacher.id)
        teacher_accuracies[teacher.id] = accuracy(stored["test.logits"], stored["test.labels"])
    card = model_card(run, record, predictions, ctx.splits, teacher_accuracies)
    ctx.store.save(run, model, record, history, predictions, card)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is full.

    CUDA raises an exception of its own for this; on a CPU, only the message tells.
    """
    is_typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_typed or "can't allocate memory" in str(error)


def out_of_memory_error(run: Run) -> UserError:
    """Return the message for a run that does not fit into memory."""
    return UserError(
        f"{run.display_name}: out of memory; lower train.batch_size, raise train.accumulate, "
        "or set train.precision=bf16"
    )
