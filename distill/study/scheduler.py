"""Training a study's runs: phase by phase, in cohorts, over processes and jobs; what is done is stored."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from distill.errors import UserError, pluralize
from distill.evaluation.calibration import effective_smoothing
from distill.evaluation.metrics import fitted_temperature
from distill.evaluation.predict import accuracy, predict_all
from distill.export.model_card import model_card
from distill.models.factory import blank_images, parameter_count
from distill.storage.run import Run
from distill.study.cache_plan import (
    plan_logit_cache,
    teacher_logits_identity,
    teacher_outputs_needed,
    told,
)
from distill.study.context import StudyContext
from distill.study.plan import (
    available_memory,
    make_cohorts,
    missing_runs,
    share_cohorts,
    steps_per_epoch_of,
)
from distill.study.run_locks import Shard
from distill.study.tracking import track_other_processes, with_tracking
from distill.training.cached_teacher import CachedTeacher
from distill.training.checkpoint import resume
from distill.training.logit_cache import LogitCache
from distill.training.logit_codec import choose_codec
from distill.training.state import TrainState, memory_format_of, start
from distill.training.teacher import Teacher, check_teacher
from distill.training.trainer import fit

POLL = 5.0  # seconds between two looks at what other jobs have stored


def ancestor_ids(run: Run) -> set[str]:
    """Ids of the teachers, and theirs."""
    return {run_id for teacher in run.teachers for run_id in {teacher.id} | ancestor_ids(teacher)}


def train_all(
    ctx: StudyContext, runs: list[Run], sizes: dict[str, int], wait: bool
) -> dict[str, str]:
    """Train runs that do not depend on each other, with other jobs where there are some; returns why runs failed.

    Args:
        ctx: of the study.
        runs: that are not stored.
        sizes: as `preflight` returns them.
        wait: for the other jobs to end theirs, which others depend on; else until it is seen that they are alive. What
            jobs that are gone have claimed is trained here.
    """
    failed = _of_all(ctx, train_generation(ctx, runs, sizes))
    said = False
    while ctx.claims:
        failed |= _of_all(ctx, {run.id: why for run in runs if (why := ctx.claims.failure(run.id))})
        left = [run for run in missing_runs(ctx, runs) if run.id not in failed]
        if not left or not _goes_on(ctx, left, wait):
            break
        if not said and wait:
            ctx.progress.log(
                f"waiting for {pluralize(len(left), 'run')} of other jobs, {left[0].display_name} for one"
            )
        said = True
        time.sleep(POLL)
        failed |= _of_all(ctx, train_generation(ctx, left, sizes, again=True))
    track_other_processes(ctx, runs)
    return failed


def _goes_on(ctx: StudyContext, left: list[Run], wait: bool) -> bool:
    """Whether to look again at runs that others claim: these are waited for, or not yet seen to be alive."""
    on = [wait or not all(ctx.claims.is_alive(run.id) for run in left)]
    if ctx.accelerator.num_processes > 1:
        broadcast_object_list(on)
    return on[0]


def _claimed(ctx: StudyContext, cohort: list[Run], sharing: bool) -> list[Run]:
    """What of a cohort is this job's to train; the main process asks where all processes train it together."""
    if ctx.claims is None:
        return cohort
    asks = ctx.accelerator.is_main_process or not sharing
    mine = [
        [run.id for run in cohort if asks and ctx.claims.take(run.id) and not _is_done(ctx, run)]
    ]
    if sharing:
        broadcast_object_list(mine)
    return [run for run in cohort if run.id in mine[0]]


def _is_done(ctx: StudyContext, run: Run) -> bool:
    """Whether another job has stored a run, before this one claimed it."""
    done = ctx.store.is_complete(run.id)
    if done:
        ctx.claims.release(run.id)
    return done


def _of_all(ctx: StudyContext, found: dict[str, str]) -> dict[str, str]:
    """What all processes found, when all are done."""
    ctx.accelerator.wait_for_everyone()
    every = gather_object([found]) if ctx.accelerator.num_processes > 1 else [found]
    return {key: value for own in every for key, value in own.items()}


def train_generation(
    ctx: StudyContext, runs: list[Run], sizes: dict[str, int] | None = None, again: bool = False
) -> dict[str, str]:
    """Train runs that do not depend on each other; why runs failed, by their ids. `again` says nothing twice."""
    for run in [run for run in runs if run.arm.frozen]:
        _store_given(ctx, run)
    runs = [run for run in runs if not run.arm.frozen]
    failed: dict[str, str] = {}
    if not runs:
        return failed
    process, processes = ctx.accelerator.process_index, ctx.accelerator.num_processes
    cohorts = make_cohorts(runs, sizes, available_memory(ctx.accelerator))
    jobs = ctx.claims.shard if ctx.claims else Shard(0, 1)
    cohorts, sharing = share_cohorts(cohorts, processes, runs[0].arm.train.parallelism, jobs.count)
    for line in told(plan_logit_cache(ctx, cohorts, sharing)) if not again else ():
        ctx.progress.log(line)
    first = (
        jobs.index * len(cohorts) // jobs.count
    )  # each job begins with its own, and goes on with what is left
    cohorts = cohorts[first:] + cohorts[:first]
    waiting = cohorts if sharing else cohorts[process::processes]
    while waiting:
        cohort, *waiting = waiting
        cohort = _claimed(ctx, cohort, sharing)
        if cohort and not _train_or_split(ctx, cohort, sharing, failed):
            half = (len(cohort) + 1) // 2
            ctx.progress.log(
                f"out of memory with {len(cohort)} runs side by side: {half} at a time"
            )
            waiting = [cohort[:half], cohort[half:], *waiting]
        elif ctx.claims:
            for run in cohort:
                if run.id in failed:
                    ctx.claims.fail(run.id, failed[run.id])
                ctx.claims.release(run.id)
    return failed


def _train_or_split(
    ctx: StudyContext, cohort: list[Run], sharing: bool, failed: dict[str, str]
) -> bool:
    """Train a cohort, noting why runs failed; False if it is too large for the device, and can be split."""
    try:
        _train_cohort(ctx, cohort, sharing, failed)
        return True
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        told = (
            f"{cohort[0].display_name}: out of memory; lower train.batch_size, raise train.accumulate, or set "
            "train.precision=bf16"
        )
        if sharing:  # the other processes have not met it
            raise UserError(told) from None
        if len(cohort) == 1:
            failed[cohort[0].id] = told
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # not before the exception is gone, which holds all that there was
    return len(cohort) == 1


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; of a CPU it is a sentence."""
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def _train_cohort(
    ctx: StudyContext, cohort: list[Run], sharing: bool, failed: dict[str, str]
) -> None:
    device, train = ctx.accelerator.device, cohort[0].arm.train
    teachers = _teachers_of(ctx, cohort)
    members: list[TrainState] = []
    for run in cohort:
        model = ctx.build(run.arm, run.seed)
        members.append(
            start(
                run,
                model,
                teachers,
                ctx.splits.class_frequencies,
                steps_per_epoch_of(ctx.splits, run.arm),
                ctx.accelerator,
                sharing,
            )
        )
        resume(
            members[-1],
            ctx.store,
            ctx.accelerator.process_index if sharing else 0,
            device,
            ctx.progress.log,
        )
    names = list(dict.fromkeys(run.arm.name.split("/")[0] for run in cohort))
    names = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else names
    title = f"{'+'.join(names)}, seed {cohort[0].seed}, {len(cohort)} run{'s' if len(cohort) > 1 else ''}"
    with _answers_of(ctx, cohort, teachers, sharing) as answers:
        for reached in sorted(
            {(member.epoch, member.step) for member in members}
        ):  # a kill between two checkpoints
            level = [
                member for member in members if (member.epoch, member.step) == reached
            ]  # leaves two
            with ctx.progress.task(title, train.epochs, *reached) as log:
                fit(
                    level,
                    answers,
                    ctx.splits,
                    ctx.store,
                    ctx.accelerator,
                    sharing,
                    with_tracking(ctx, level, log),
                )
    for member in [member for member in members if member.failure]:
        failed[member.run.id] = member.failure
        ctx.progress.log(member.failure)
    for member in [member for member in members if not member.failure]:
        shared = ctx.accelerator if sharing else None
        predictions = predict_all(member.result, ctx.splits, member.run.arm.augment, device, shared)
        if ctx.accelerator.is_main_process or not sharing:
            _store(ctx, member.run, member.result, predictions, member.seconds, member.history)


def _teachers_of(ctx: StudyContext, cohort: list[Run]) -> dict[str, Teacher]:
    """The networks that a cohort learns from, by id, ready to tell what its losses look at."""
    needs: dict[str, set[str]] = {}
    for run in cohort:
        for teacher in run.teachers:
            needs.setdefault(teacher.id, set()).update(teacher_outputs_needed(run))
    known = {teacher.id: teacher for run in cohort for teacher in run.teachers}
    train = cohort[0].arm.train
    return {
        name: Teacher(
            ctx.load(known[name]).to(memory_format=memory_format_of(train)),
            wanted,
            ctx.half,
            train.compile,
        )
        for name, wanted in needs.items()
    }


@contextmanager
def _answers_of(
    ctx: StudyContext, cohort: list[Run], teachers: dict[str, Teacher], sharing: bool
) -> Iterator[dict[str, CachedTeacher]]:
    """What teachers say to the cohort's views, from and to the files in which that is kept."""
    arm, data, shared = cohort[0].arm, ctx.recipe.data, ctx.accelerator if sharing else None
    size = min(arm.train.batch_size, len(ctx.splits.train))
    rows = size * steps_per_epoch_of(ctx.splits, arm)
    with ExitStack() as stack:
        answers = {}
        for name, teacher in teachers.items():
            codec, store = (
                choose_codec(teacher, blank_images(teacher.model), data.logit_cache),
                None,
            )
            if not teacher.needs:
                identity = teacher_logits_identity(ctx, cohort[0], name, sharing)
                store = LogitCache(
                    ctx.store.logit_cache_path(identity), identity, rows, codec, ctx.progress.log
                )
                if not sharing or ctx.accelerator.is_main_process:
                    stack.enter_context(store.writing(arm.train.epochs, data.logit_cache_gb * 1e9))
            answers[name] = CachedTeacher(
                teacher, codec if data.logit_cache != "exact" else None, store, size, shared
            )
        yield answers


def _store_given(ctx: StudyContext, run: Run) -> None:
    """A network that is given: nothing to train, but judged and stored as the others are."""
    if ctx.accelerator.is_main_process:
        model = ctx.build(run.arm, None).to(ctx.accelerator.device)
        predictions = predict_all(model, ctx.splits, run.arm.augment, ctx.accelerator.device)
        _store(ctx, run, model, predictions, 0.0, [])


def _store(
    ctx: StudyContext,
    run: Run,
    model: nn.Module,
    predictions: dict[str, Tensor],
    seconds: float,
    history: list[dict[str, Any]],
) -> None:
    """Keep a run that is done, with its calibration and its card."""
    taught = {t.id: ctx.store.predictions(t.id) for t in run.teachers}
    accuracies = {
        name: accuracy(said["test.logits"], said["test.labels"]) for name, said in taught.items()
    }
    record = {
        "model": run.arm.model,
        "parameters": parameter_count(model),
        "epochs": 0 if run.arm.frozen else run.arm.train.epochs,
        "seconds": round(seconds, 3),
        "calibration_temperature": fitted_temperature(predictions),
    }
    card = model_card(run, record, predictions, ctx.splits, accuracies)
    ctx.store.save(run, model, record, history, predictions, card)


def check_teachers(ctx: StudyContext, teachers: list[Run]) -> None:
    """Every teacher's accuracy on the validation split, said and judged before a student starts."""
    for run in teachers:
        predictions = ctx.store.predictions(run.id)
        logits, labels = predictions["validation.logits"], predictions["validation.labels"]
        if ctx.recipe.check_teachers:
            check_teacher(run.display_name, logits, labels)
        index = effective_smoothing(logits, labels)
        ctx.progress.log(
            f"teacher {run.display_name}: {accuracy(logits, labels):.2%} of {len(labels)} validation images, "
            f"its answers as good as smoothed by {index:.2f} (gamma)"
        )
