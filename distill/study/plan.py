"""Find out what a study still has to train: missing runs, damaged runs, and their teachers."""

from distill.storage.run_fingerprint import Run
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext


def damaged_runs(store: RunStore, runs: list[Run]) -> dict[str, str]:
    """Return what is wrong with stored runs whose files were changed or truncated, by run id."""
    damaged = {}
    for run_id in dict.fromkeys(run.id for run in runs):
        damage = store.damage(run_id) if store.is_complete(run_id) else None
        if damage:
            damaged[run_id] = damage
    return damaged


def missing_runs(ctx: StudyContext, runs: list[Run]) -> list[Run]:
    """Return the runs that are not stored, each id once.

    The main process decides, so that all agree.
    """
    first_of_id: dict[str, Run] = {}
    for run in runs:
        first_of_id.setdefault(run.id, run)
    missing = [run_id for run_id in first_of_id if not ctx.store.is_complete(run_id)]
    return [first_of_id[run_id] for run_id in ctx.processes.broadcast_object(missing)]


def ancestor_ids(run: Run) -> set[str]:
    """Return the ids of a run's teachers, of their teachers, and so on."""
    ids = set()
    for teacher in run.teachers:
        ids |= {teacher.id} | ancestor_ids(teacher)
    return ids
