"""What is to be trained, whether it can be, side by side with what, and at what cost; nothing is trained here."""

from pathlib import Path
from typing import Any, NamedTuple

from distill.losses import required_outputs
from distill.storage.run import Run
from distill.study.context import StudyContext
from distill.training.logit_cache import count_stored_epochs


def teacher_outputs_needed(run: Run) -> frozenset[str]:
    """What a run's loss looks at in its teacher beside logits; an ensemble has nothing else."""
    return (
        required_outputs(run.arm.loss, of_teacher=True) if len(run.teachers) == 1 else frozenset()
    )


# ------------------------------------------------------------------------------------------- the logit store


class CachePlan(NamedTuple):
    """A teacher's answers to a cohort's views, in the logit store."""

    teacher: Run
    path: Path
    epochs: int  # that the cohort needs
    stored: int
    size: int  # bytes that are still to be written, about


def teacher_logits_identity(
    ctx: StudyContext, run: Run, teacher: str, sharing: bool
) -> dict[str, Any]:
    """All that a teacher's answers to a run's views depend on, to the last bit: its weights, the stream of views, and
    how they go through the network."""
    train, store = run.arm.train, ctx.store
    weights = (
        store.record(teacher)["sha256"]["model.safetensors"] if store.is_complete(teacher) else None
    )
    processes = (
        ctx.accelerator.num_processes if sharing else 1
    )  # each puts so many images through at once
    return {
        "teacher": teacher,
        "weights": weights,
        "processes": processes,
        "seed": run.seed,
        "augment": run.arm.augment.model_dump(exclude_defaults=True),
        "batch_size": train.batch_size,
        "accumulate": train.accumulate,
        "channels_last": train.channels_last,
        "compile": train.compile,
        "precision": ctx.accelerator.mixed_precision,
        "store": ctx.recipe.data.logit_cache,
    }


def plan_logit_cache(
    ctx: StudyContext, cohorts: list[list[Run]], sharing: bool = False
) -> list[CachePlan]:
    """What cohorts find in the logit store, and what they leave there."""
    kept: dict[Path, CachePlan] = {}
    classes, data = len(ctx.splits.class_names), ctx.recipe.data
    bytes_each = 4 if data.logit_cache == "exact" and ctx.accelerator.mixed_precision == "no" else 2
    values = min(2 * data.logit_cache, classes) if isinstance(data.logit_cache, int) else classes
    for cohort in cohorts:
        arm = cohort[0].arm
        live = {t.id for run in cohort for t in run.teachers if teacher_outputs_needed(run)}
        for teacher in {
            t.id: t for run in cohort for t in run.teachers if t.id not in live
        }.values():
            path = ctx.store.logit_cache_path(
                teacher_logits_identity(ctx, cohort[0], teacher.id, sharing)
            )
            epochs, stored = arm.train.epochs, count_stored_epochs(path)
            size = (
                len(ctx.splits.train) * values * bytes_each * max(0, epochs - stored)
                if data.logit_cache_gb
                else 0
            )
            kept[path] = CachePlan(teacher, path, epochs, min(stored, epochs), size)
    return list(kept.values())


def told(answers: list[CachePlan]) -> list[str]:
    """For a person: which teachers need not answer again, and what is about to be written."""
    known, new = [k for k in answers if k.stored == k.epochs], sum(k.size for k in answers)
    lines = []
    if known:
        lines.append(
            f"answers of {len(known)} of {len(answers)} teachers are stored, which saves their passes"
        )
    if new:
        lines.append(
            f"answers of {len(answers) - len(known)} teachers will be kept for later studies, about "
            f"{new / 1e6:,.3g} MB in {answers[0].path.parent} (data.logit_cache_gb=0 keeps none)"
        )
    return lines
