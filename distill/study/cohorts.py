"""Group runs into cohorts that train side by side, and divide these among processes and jobs."""

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from distill.storage.run_fingerprint import Run
from distill.study.context import StudyContext


def make_cohorts(
    runs: list[Run], sizes: Mapping[str, int] | None = None, memory: int = 0
) -> list[list[Run]]:
    """Group runs that can train side by side: equal in seed, views, batches and epochs.

    Args:
        runs: runs that do not depend on each other.
        sizes: bytes that one run of each arm needs while it trains, by the arm's name; None for no
            limit.
        memory: bytes that the runs of one cohort may need together.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_cohort_key(run), []).append(run)
    if sizes is None:
        return list(groups.values())
    return [
        cohort for group in groups.values() for cohort in _split_by_memory(group, sizes, memory)
    ]


def _cohort_key(run: Run) -> tuple[Any, ...]:
    """Return what runs must have in common to share batches of views and teachers."""
    train = run.arm.train
    return (
        run.seed,
        run.arm.augment,
        train.batch_size,
        train.accumulate,
        train.epochs,
        train.channels_last,
        train.compile,
    )


def _split_by_memory(group: list[Run], sizes: Mapping[str, int], memory: int) -> list[list[Run]]:
    cohorts: list[list[Run]] = [[]]
    used = 0
    for run in group:
        used += sizes[run.arm.name]
        if used > memory and cohorts[-1]:
            cohorts.append([])
            used = sizes[run.arm.name]
        cohorts[-1].append(run)
    return cohorts


def available_memory(ctx: StudyContext) -> int:
    """Return the bytes that the runs of a cohort may use on one process: half of the free memory.

    The other half is for activations and images. The main process decides, so that all agree.
    """
    device = ctx.accelerator.device
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else PyTorch's unused cache would count as taken
        free = torch.cuda.mem_get_info(device)[0]
    else:
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        free = psutil.virtual_memory().available // processes_here
    return ctx.processes.broadcast_object(free // 2)


def uses_data_parallel(
    cohorts: list[list[Run]], processes: int, parallelism: str, jobs: int = 1
) -> bool:
    """Return whether all processes share each batch, rather than each training whole runs.

    By default they share batches if there are fewer runs than processes.
    """
    if processes == 1 or parallelism == "runs":
        return False
    if parallelism == "batches":
        return True
    runs = sum(len(cohort) for cohort in cohorts)
    return runs < processes * jobs


def split_cohorts(cohorts: list[list[Run]], workers: int) -> list[list[Run]]:
    """Halve the largest cohorts until every worker has one; return them by size, largest first.

    Args:
        cohorts: the cohorts to train.
        workers: processes or jobs that each train cohorts of their own.
    """
    if workers == 1:
        return cohorts
    runs = sum(len(cohort) for cohort in cohorts)
    cohorts = list(cohorts)
    while len(cohorts) < min(workers, runs):
        largest = max(cohorts, key=len)
        cohorts.remove(largest)
        cohorts += halve(largest)
    return sorted(cohorts, key=len, reverse=True)


def halve(cohort: list[Run]) -> list[list[Run]]:
    """Return the two halves of a cohort."""
    middle = (len(cohort) + 1) // 2
    return [cohort[:middle], cohort[middle:]]
