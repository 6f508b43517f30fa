"""Find stored runs by their folder, their id or the name of their arm."""

from pathlib import Path

from distill.errors import UserError, suggest
from distill.storage.run_store import RunStore
from distill.storage.study_results import read_results


def find_runs(store: RunStore, name: str) -> list[str]:
    """Return the ids of the runs that a folder, an id or an arm's name stands for.

    Args:
        store: where the runs are.
        name: a run's folder, the beginning of its id, or `STUDY:ARM` for an arm's runs of all
            seeds.

    Raises:
        UserError: if no run matches, or the beginning of an id matches several.
    """
    folder = Path(name).resolve()
    if (folder / "run.json").is_file() and folder.parent == store.models.resolve():
        return [folder.name]
    if (folder / "results.json").is_file() and folder.parent == store.root.resolve():
        name = folder.name
    parts = name.split(":")
    # The names of studies and of arms may have colons, too.
    splits = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(1, len(parts))]
    for study, arm in splits:
        if (store.root / study / "results.json").is_file():
            return _runs_of_arm(store, study, arm)
    if splits:
        return _runs_of_arm(store, *splits[0])
    return [_run_by_beginning(store, name)]


def _runs_of_arm(store: RunStore, study: str, arm: str) -> list[str]:
    """Return the ids of an arm's runs in the results of a study."""
    runs = read_results(store.root / study).runs
    found = [run.id for run in runs if run.arm == arm]
    if not found:
        known = {run.arm for run in runs}
        raise UserError(f"study {study} has no arm '{arm}'; {suggest(arm, known)}")
    return found


def _run_by_beginning(store: RunStore, beginning: str) -> str:
    """Return the id of the only finished run whose id has this beginning."""
    ids = []
    if store.models.is_dir():
        # Names with a dot are checkpoints and folders of unfinished or damaged runs.
        names = [path.name for path in store.models.iterdir() if "." not in path.name]
        ids = [name for name in names if store.is_complete(name)]
    found = [run_id for run_id in ids if run_id.startswith(beginning)]
    if not found and (store.root / beginning / "results.json").is_file():
        arms = dict.fromkeys(run.arm for run in read_results(store.root / beginning).runs)
        names = ", ".join(f"{beginning}:{arm}" for arm in arms)
        raise UserError(f"'{beginning}' is a study; name one of its arms: {names}")
    if len(found) != 1:
        raise UserError(
            f"'{beginning}' matches {len(found)} of the {len(ids)} runs in {store.models}; "
            "it must match exactly one"
        )
    return found[0]
