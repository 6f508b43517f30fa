"""Train a study's runs: generation by generation, in cohorts, over processes and jobs."""

import time

import torch

from distill.errors import pluralize
from distill.evaluation.calibration import effective_smoothing
from distill.evaluation.predict import accuracy
from distill.storage.run_fingerprint import Run
from distill.study.cohorts import (
    available_memory,
    halve,
    make_cohorts,
    split_cohorts,
    uses_data_parallel,
)
from distill.study.context import StudyContext
from distill.study.logit_cache_plan import cache_messages, plan_logit_cache
from distill.study.plan import missing_runs
from distill.study.tracking import track_other_processes
from distill.study.train_cohort import (
    is_out_of_memory,
    out_of_memory_error,
    store_frozen_network,
    train_cohort,
)
from distill.training.teacher import check_teacher, likelihood_note

# Seconds between two checks of what other jobs have stored.
POLL_SECONDS = 5.0

Failures = dict[str, str]
"""Why runs failed, by run id."""


def train_with_other_jobs(
    ctx: StudyContext, runs: list[Run], sizes: dict[str, int], *, wait: bool
) -> Failures:
    """Train runs that do not depend on each other, together with other jobs of the study.

    If another job dies, this job trains its runs.

    Args:
        ctx: the study's context.
        runs: runs that are not stored yet.
        sizes: bytes that one run of each arm needs while it trains, as `preflight` returns them.
        wait: whether to wait until the other jobs have finished their runs, because later runs
            depend on them. If False, wait only until it is clear that these jobs are alive.

    Returns:
        the reasons of failed runs, on all processes and in all jobs.
    """
    failed = _gather_failures(ctx, train_generation(ctx, runs, sizes))
    has_announced = False
    while ctx.run_locks.is_shared:
        failed |= _gather_failures(ctx, _failures_of_other_jobs(ctx, runs))
        left = [run for run in missing_runs(ctx, runs) if run.id not in failed]
        if not left or not _keep_polling(ctx, left, wait=wait):
            break
        if wait and not has_announced:
            has_announced = True
            ctx.progress.log(
                f"waiting for {pluralize(len(left), 'run')} of other jobs, e.g. "
                f"{left[0].display_name}"
            )
        time.sleep(POLL_SECONDS)
        failed |= _gather_failures(ctx, train_generation(ctx, left, sizes, quiet=True))
    track_other_processes(ctx, runs)
    return failed


def train_generation(
    ctx: StudyContext,
    runs: list[Run],
    sizes: dict[str, int] | None = None,
    *,
    quiet: bool = False,
) -> Failures:
    """Train this process's share of runs that do not depend on each other.

    Args:
        ctx: the study's context.
        runs: runs that are not stored yet; frozen networks are evaluated and stored.
        sizes: bytes that one run of each arm needs while it trains; None for no limit.
        quiet: whether to leave out messages that were logged before.

    Returns:
        the reasons of failed runs.
    """
    for run in runs:
        if run.arm.frozen:
            store_frozen_network(ctx, run)
    runs = [run for run in runs if not run.arm.frozen]
    if not runs:
        return {}
    cohorts, data_parallel = _share_of_cohorts(ctx, runs, sizes, quiet=quiet)
    failed: Failures = {}
    queue = list(cohorts)
    while queue:
        cohort = _acquire(ctx, queue.pop(0), data_parallel=data_parallel)
        if not cohort:
            continue
        new_failures = _train_or_split(ctx, cohort, data_parallel=data_parallel)
        if new_failures is None:
            halves = halve(cohort)
            ctx.progress.log(
                f"out of memory with {len(cohort)} runs side by side: training {len(halves[0])} "
                "at a time"
            )
            queue = halves + queue
            continue
        failed |= new_failures
        for run in cohort:
            if run.id in failed:
                ctx.run_locks.mark_failed(run.id, failed[run.id])
            ctx.run_locks.release(run.id)
    return failed


def _share_of_cohorts(
    ctx: StudyContext, runs: list[Run], sizes: dict[str, int] | None, *, quiet: bool
) -> tuple[list[list[Run]], bool]:
    """Return the cohorts that this process trains, and whether processes share each batch."""
    processes = ctx.processes.world_size
    shard = ctx.run_locks.shard
    cohorts = make_cohorts(runs, sizes, available_memory(ctx))
    parallelism = runs[0].arm.train.parallelism
    data_parallel = uses_data_parallel(cohorts, processes, parallelism, shard.count)
    workers = shard.count if data_parallel else processes * shard.count
    cohorts = split_cohorts(cohorts, workers)
    if not quiet:
        for message in cache_messages(plan_logit_cache(ctx, cohorts, data_parallel=data_parallel)):
            ctx.progress.log(message)
    # Each job starts with its own part of the list, and continues with what other jobs have left.
    first = shard.index * len(cohorts) // shard.count
    cohorts = cohorts[first:] + cohorts[:first]
    if not data_parallel:
        cohorts = cohorts[ctx.processes.rank :: processes]
    return cohorts, data_parallel


def _acquire(ctx: StudyContext, cohort: list[Run], *, data_parallel: bool) -> list[Run]:
    """Return the runs of a cohort that this job may train.

    If all processes share batches, the main process decides.
    """
    if not ctx.run_locks.is_shared:
        return cohort
    mine: list[str] = []
    if ctx.processes.is_main or not data_parallel:
        mine = [run.id for run in cohort if _acquire_run(ctx, run)]
    if data_parallel:
        mine = ctx.processes.broadcast_object(mine)
    return [run for run in cohort if run.id in mine]


def _acquire_run(ctx: StudyContext, run: Run) -> bool:
    """Lock a run for this job; return False if another job has it, or has just stored it."""
    if not ctx.run_locks.acquire(run.id):
        return False
    if ctx.store.is_complete(run.id):
        ctx.run_locks.release(run.id)
        return False
    return True


def _train_or_split(
    ctx: StudyContext, cohort: list[Run], *, data_parallel: bool
) -> Failures | None:
    """Train a cohort; return why runs failed, or None if the cohort must be halved.

    It must be halved if its runs do not fit into memory side by side.

    Raises:
        UserError: if memory is full while processes share batches: the other processes cannot
            notice it.
    """
    try:
        return train_cohort(ctx, cohort, data_parallel=data_parallel)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = out_of_memory_error(cohort[0])
        if data_parallel:
            raise message from None
    # Free the memory after the `except` block: until then, the traceback keeps the tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {cohort[0].id: str(message)} if len(cohort) == 1 else None


def _gather_failures(ctx: StudyContext, failed: Failures) -> Failures:
    """Wait for all processes, and return the failures of all of them."""
    ctx.processes.wait()
    gathered: Failures = {}
    for own in ctx.processes.gather_objects(failed):
        gathered |= own
    return gathered


def _failures_of_other_jobs(ctx: StudyContext, runs: list[Run]) -> Failures:
    reasons = {run.id: ctx.run_locks.failure_of(run.id) for run in runs}
    return {run_id: reason for run_id, reason in reasons.items() if reason}


def _keep_polling(ctx: StudyContext, left: list[Run], *, wait: bool) -> bool:
    """Return whether to check the runs of other jobs again.

    Check again if those runs must be waited for, or if it is unknown whether the jobs are alive.
    """
    are_alive = all(ctx.run_locks.is_alive(run.id) for run in left)
    return ctx.processes.broadcast_object(wait or not are_alive)


def check_teachers(ctx: StudyContext, teachers: list[Run]) -> None:
    """Log every teacher's validation accuracy; refuse one that is not above chance.

    Raises:
        UserError: if a teacher is not above chance; `check_teachers: false` in the recipe turns
            this off.
    """
    for run in teachers:
        predictions = ctx.store.predictions(run.id)
        logits = predictions["validation.logits"]
        labels = predictions["validation.labels"]
        if ctx.recipe.check_teachers:
            check_teacher(run.display_name, logits, labels)
        gamma = effective_smoothing(logits, labels)
        ctx.progress.log(
            f"teacher {run.display_name}: {accuracy(logits, labels):.2%} validation accuracy "
            f"(n = {len(labels)}), effective label smoothing γ = {gamma:.2f}"
        )
        note = likelihood_note(run.display_name, logits, labels)
        if note:
            ctx.progress.log(note)
