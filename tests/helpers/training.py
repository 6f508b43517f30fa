"""Train the runs of a small study, in whole or in part, and compare weights."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from distill.data.splits import Splits, load_splits
from distill.devices.distributed import ONE_PROCESS, Distributed
from distill.recipe.schema import Data, Recipe
from distill.storage.run_fingerprint import Run, plan_runs
from distill.storage.run_store import RunStore
from distill.study import scheduler
from distill.study.context import StudyContext
from distill.study.logit_cache_plan import teacher_outputs_needed
from distill.study.progress import Progress
from distill.training import trainer
from distill.training.cached_teacher import CachedTeacher
from distill.training.state import TrainContext, TrainState, create_train_state
from distill.training.teacher import Teacher

Weights = Mapping[str, Tensor]


class TrainedStudy(NamedTuple):
    """A study whose runs are stored, and their weights by arm."""

    ctx: StudyContext
    weights: dict[str, Weights]


class InterruptionError(Exception):
    """Stands for a process that is killed."""


@cache
def _synthetic_splits(settings: str) -> Splits:
    """Return synthetic images, which take 5 ms each to make, in memory."""
    splits = load_splits(Data.model_validate_json(settings))
    splits.load_into_memory()
    return splits


def make_context(recipe: Recipe, out: Path, accelerator: Accelerator) -> StudyContext:
    """Return the context of a study whose runs are stored in the folder `out`.

    Studies of equal synthetic images share their splits.
    """
    if recipe.data.source == "synthetic":
        splits = _synthetic_splits(recipe.data.model_dump_json())
    else:
        splits = load_splits(recipe.data)
    return StudyContext(
        recipe=recipe,
        splits=splits,
        store=RunStore(out),
        accelerator=accelerator,
        progress=Progress(enabled=False),
    )


def plan(ctx: StudyContext) -> list[Run]:
    """Return every run of the study, teachers before their students."""
    return plan_runs(ctx.recipe, ctx.splits.identity, "no")


def run_of(ctx: StudyContext, arm: str) -> Run:
    """Return an arm's run with the first seed."""
    return next(run for run in plan(ctx) if run.arm.name == arm)


# -------------------------------------------------------------------------------- whole generations


def train_generation(ctx: StudyContext, runs: list[Run]) -> dict[str, Weights]:
    """Train runs that do not depend on each other; return the stored weights by arm."""
    failures = scheduler.train_generation(ctx, runs)
    assert not failures, failures
    return {run.arm.name: stored_weights(ctx, run) for run in runs}


def train_study(ctx: StudyContext) -> dict[str, Weights]:
    """Train every run of the study; return the stored weights by arm."""
    runs = plan(ctx)
    weights: dict[str, Weights] = {}
    for generation in sorted({run.generation for run in runs}):
        weights |= train_generation(ctx, [run for run in runs if run.generation == generation])
    return weights


def train_run(ctx: StudyContext, arm: str) -> Weights:
    """Train an arm's run with the first seed, its teachers first; return its stored weights."""
    run = run_of(ctx, arm)
    for teacher in run.teachers:
        if not ctx.store.is_complete(teacher.id):
            train_run(ctx, teacher.arm.name)
    return train_generation(ctx, [run])[arm]


def stored_weights(ctx: StudyContext, run: Run) -> Weights:
    """Return the weights of a finished run."""
    return ctx.load(run).state_dict()


# -------------------------------------------------------------------------- parts of training a run


def train_context(ctx: StudyContext, dist: Distributed = ONE_PROCESS) -> TrainContext:
    """Return what the training loop needs of a study."""
    return TrainContext(ctx.splits, ctx.store, ctx.accelerator, dist)


def load_teachers(ctx: StudyContext, runs: list[Run]) -> dict[str, Teacher]:
    """Return the stored teachers of runs, by id, which give what the losses need."""
    teachers: dict[str, Run] = {}
    outputs: dict[str, set[str]] = {}
    for run in runs:
        for teacher in run.teachers:
            teachers[teacher.id] = teacher
            outputs.setdefault(teacher.id, set()).update(teacher_outputs_needed(run))
    return {id_: Teacher(ctx.load(run), outputs[id_]) for id_, run in teachers.items()}


def create_students(
    ctx: StudyContext, runs: list[Run], teachers: Mapping[str, Teacher] | None = None
) -> list[TrainState]:
    """Return runs at their first step."""
    return [
        create_train_state(run, ctx.build(run.arm, run.seed), teachers or {}, train_context(ctx))
        for run in runs
    ]


def fit(
    ctx: StudyContext,
    students: list[TrainState],
    teachers: Mapping[str, Teacher] | None = None,
    log_epoch: trainer.EpochLog = lambda *_: None,
) -> None:
    """Train students to their last epoch with live teachers; nothing is stored but checkpoints."""
    live = {run_id: CachedTeacher(teacher) for run_id, teacher in (teachers or {}).items()}
    trainer.fit(students, live, train_context(ctx), log_epoch)


def fit_and_stop(ctx: StudyContext, runs: list[Run], *, after_epoch: int) -> None:
    """Train runs side by side, whose teachers are stored, and stop as a killed process does."""

    def stop(epoch: int, *_: object) -> None:
        if epoch == after_epoch:
            raise InterruptionError

    teachers = load_teachers(ctx, runs)
    with pytest.raises(InterruptionError):
        fit(ctx, create_students(ctx, runs, teachers), teachers, stop)


# -------------------------------------------------------------------------------------- comparisons


def same(a: Weights, b: Weights) -> bool:
    """Return whether two networks have the same weights, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(found: Weights, expected: Weights, *, rtol: float, atol: float) -> None:
    """Check that two networks have the same weights but for rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol)
