"""Find the runs that a person means."""

from pathlib import Path

from distill.errors import UserError, suggest
from distill.storage.run_store import RunStore
from distill.storage.study_results import read_results


def find_runs(store: RunStore, name: str) -> list[str]:
    """Run ids that a person means by a folder, the beginning of an id, or ``STUDY:ARM``.

    Raises:
        UserError: if nothing or too much fits.
    """
    if (Path(name) / "run.json").is_file() and Path(name).resolve().parent == (
        store.root / "models"
    ).resolve():
        return [Path(name).resolve().name]
    study, colon, arm = name.partition(":")
    if colon:
        results = read_results(store.root / study)
        found = [run.id for run in results.runs if run.arm == arm]
        if not found:
            known = {run.arm for run in results.runs}
            raise UserError(f"study {study} has no arm '{arm}'; {suggest(arm, known)}")
        return found
    folder = store.root / "models"
    names = [p.name for p in folder.iterdir() if "." not in p.name] if folder.is_dir() else []
    ids = [name for name in names if store.is_complete(name)]
    found = [i for i in ids if i.startswith(name)]
    if len(found) != 1:
        raise UserError(f"'{name}' fits {len(found)} of the {len(ids)} runs in {folder}")
    return found
