"""Find out which teacher logits are cached already, and which a cohort will add."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import pluralize
from distill.losses import required_outputs
from distill.recipe.schema import Data
from distill.storage.run_fingerprint import Run
from distill.study.context import StudyContext
from distill.training.logit_cache import count_stored_epochs
from distill.training.logit_cache_identity import logit_cache_identity


@dataclass(frozen=True)
class CachePlan:
    """A teacher's logits for the views of one cohort.

    Attributes:
        teacher: the teacher's run.
        path: where the logits are cached.
        epochs: number of epochs that the cohort needs.
        stored: number of these epochs that are already cached.
        new_bytes: estimated number of bytes to write.
    """

    teacher: Run
    path: Path
    epochs: int
    stored: int
    new_bytes: int


def teacher_outputs_needed(run: Run) -> frozenset[str]:
    """Return the outputs that a loss needs of its teacher besides logits; none of an ensemble."""
    if len(run.teachers) != 1:
        return frozenset()
    return required_outputs(run.arm.loss, of_teacher=True)


def teacher_logits_identity(
    ctx: StudyContext, run: Run, teacher_id: str, *, data_parallel: bool
) -> dict[str, Any]:
    """Return the identity of a teacher's logits for a run's views (`logit_cache_identity`)."""
    return logit_cache_identity(
        run,
        teacher_id,
        ctx.store,
        processes=ctx.processes.world_size if data_parallel else 1,
        precision=ctx.accelerator.mixed_precision,
        rounding=ctx.recipe.data.logit_cache,
    )


def plan_logit_cache(
    ctx: StudyContext, cohorts: Iterable[list[Run]], *, data_parallel: bool = False
) -> list[CachePlan]:
    """Return, for each teacher of each cohort, what the logit cache has and what will be added."""
    plans: dict[Path, CachePlan] = {}
    for cohort in cohorts:
        epochs = cohort[0].arm.train.epochs
        for teacher in _cachable_teachers(cohort):
            identity = teacher_logits_identity(
                ctx, cohort[0], teacher.id, data_parallel=data_parallel
            )
            path = ctx.store.logit_cache_path(identity)
            stored = min(count_stored_epochs(path), epochs)
            new_bytes = (epochs - stored) * _bytes_per_epoch(ctx)
            plans[path] = CachePlan(teacher, path, epochs, stored, new_bytes)
    return list(plans.values())


def _cachable_teachers(cohort: list[Run]) -> list[Run]:
    """Return the teachers of which the students of a cohort need nothing but logits."""
    teachers = {teacher.id: teacher for run in cohort for teacher in run.teachers}
    for run in cohort:
        if teacher_outputs_needed(run):
            for teacher in run.teachers:
                teachers.pop(teacher.id, None)
    return list(teachers.values())


def _bytes_per_epoch(ctx: StudyContext) -> int:
    """Return about how many bytes the logits of one epoch take; 0 if none may be cached."""
    data = ctx.recipe.data
    if not data.logit_cache_gb:
        return 0
    values = _values_per_image(data, classes=len(ctx.splits.class_names))
    is_float32 = data.logit_cache == "exact" and ctx.accelerator.mixed_precision == "no"
    return len(ctx.splits.train) * values * (4 if is_float32 else 2)


def _values_per_image(data: Data, classes: int) -> int:
    if isinstance(data.logit_cache, int):
        # The largest logits, and their classes.
        return min(2 * data.logit_cache, classes)
    return classes


def cache_messages(plans: list[CachePlan]) -> list[str]:
    """Return log messages: how many teachers need not run again, and how much will be written."""
    cached = [plan for plan in plans if plan.stored == plan.epochs]
    new_bytes = sum(plan.new_bytes for plan in plans)
    messages = []
    if cached:
        messages.append(
            f"the logits of {len(cached)} of {len(plans)} teachers are cached: their forward "
            "passes are skipped"
        )
    if new_bytes:
        messages.append(
            f"caching the logits of {pluralize(len(plans) - len(cached), 'teacher')} in "
            f"{plans[0].path.parent} "
            f"(about {new_bytes / 1e6:,.3g} MB; data.logit_cache_gb=0 turns the cache off)"
        )
    return messages
