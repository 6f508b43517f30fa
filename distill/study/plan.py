"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from distill.data.splits import Splits
from distill.recipe.schema import Arm
from distill.storage.run import Run
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext


def damaged_runs(store: RunStore, runs: list[Run]) -> dict[str, str]:
    """Of stored runs whose files are not what was written: what is wrong, by id; they are to be trained again."""
    found = {
        run_id: store.damage(run_id)
        for run_id in dict.fromkeys(run.id for run in runs)
        if store.is_complete(run_id)
    }
    return {run_id: damage for run_id, damage in found.items() if damage}


def missing_runs(ctx: StudyContext, runs: list[Run]) -> list[Run]:
    """Runs to train, each identity once; the main process looks, so that all agree."""
    unique = {run.id: run for run in reversed(runs)}
    missing = [[i for i in unique if not ctx.store.is_complete(i)]]
    if ctx.accelerator.num_processes > 1:
        broadcast_object_list(missing)
    return [run for run in runs if run.id in missing[0] and unique.pop(run.id, None)]


def steps_per_epoch_of(splits: Splits, arm: Arm) -> int:
    """Updates in an epoch."""
    return max(1, len(splits.train) // arm.train.batch_size)


def make_cohorts(
    runs: list[Run], sizes: Mapping[str, int] | None = None, memory: int = 0
) -> list[list[Run]]:
    """Runs that train side by side: equal in seed, views, batches and epochs, and small enough together.

    Args:
        runs: that do not depend on each other.
        sizes: bytes that an arm's run holds while it trains, by the arm's name.
        memory: what the runs of a cohort may hold together; where `sizes` are given.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        train = run.arm.train
        same = (
            run.seed,
            run.arm.augment,
            train.batch_size,
            train.accumulate,
            train.epochs,
            train.channels_last,
            train.compile,
        )
        groups.setdefault(same, []).append(run)
    if sizes is None:
        return list(groups.values())
    cohorts = []
    for group in groups.values():
        full = 0
        cohorts.append([])
        for run in group:
            full += sizes[run.arm.name]
            if full > memory and cohorts[-1]:
                cohorts.append([])
                full = sizes[run.arm.name]
            cohorts[-1].append(run)
    return cohorts


def available_memory(accelerator: Accelerator) -> int:
    """Bytes that the runs of a cohort may hold on one process: half of what is free; the rest is for what they do.

    The main process says it, so that all agree.
    """
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()  # what this process has and does not use counts as taken
        free = torch.cuda.mem_get_info(accelerator.device)[0]
    else:
        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return broadcast_object_list([free // 2])[0] if accelerator.num_processes > 1 else free // 2


def share_cohorts(
    cohorts: list[list[Run]], processes: int, spread: str, jobs: int = 1
) -> tuple[list[list[Run]], bool]:
    """Cohorts for several processes, and whether the processes share each batch rather than the cohorts.

    Large cohorts are halved until every process has one; where there are fewer runs than processes, the
    batches are shared (unless `spread` says otherwise). Several `jobs` never share batches, but cohorts.
    """
    runs, sharing = sum(map(len, cohorts)), processes > 1 and spread == "batches"
    if spread == "auto":
        sharing = processes > 1 and runs < processes * jobs
    if processes * jobs == 1 or (sharing and jobs == 1):
        return cohorts, sharing
    cohorts, takers = list(cohorts), jobs if sharing else processes * jobs
    while len(cohorts) < min(takers, runs):
        largest = max(cohorts, key=len)
        cohorts.remove(largest)
        half = (len(largest) + 1) // 2
        cohorts += [largest[:half], largest[half:]]
    return sorted(cohorts, key=len, reverse=True), sharing
