"""Train the runs of a small study, and compare weights bit by bit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from distill.storage.run import Run, plan_runs
from distill.study import scheduler
from distill.study.context import StudyContext

Weights = Mapping[str, Tensor]


def plan(ctx: StudyContext) -> list[Run]:
    """Return every run of the study, teachers before their students."""
    return plan_runs(ctx.recipe, ctx.splits.identity, "no")


def train_generation(ctx: StudyContext, runs: list[Run]) -> dict[str, Weights]:
    """Train runs that do not depend on each other; return the stored weights by arm."""
    scheduler.train_generation(ctx, runs)
    return {run.arm.name: ctx.load(run).state_dict() for run in runs}


def train_study(ctx: StudyContext) -> dict[str, Weights]:
    """Train every run of the study; return the stored weights by arm."""
    runs = plan(ctx)
    weights: dict[str, Weights] = {}
    for generation in sorted({run.generation for run in runs}):
        weights |= train_generation(ctx, [run for run in runs if run.generation == generation])
    return weights


def same(a: Weights, b: Weights) -> bool:
    """Return whether two networks have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
