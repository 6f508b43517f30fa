"""A small study with every kind of stored file, and what must be equal when it is trained again."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from helpers.damage import folder_content
from helpers.recipes import TINY, make_recipe, merge

from distill import run_study
from distill.storage.run_store import RunStore
from distill.storage.study_results import StudyResults

SMALL = merge(
    TINY,
    {
        "train": {"epochs": 2, "snapshots": 1},
        "analysis": {"examples": 10, "num_attacked": 10, "num_views": 2, "steps": 1},
    },
)


class Study(NamedTuple):
    """A study and its folder."""

    out: Path
    results: StudyResults

    @property
    def store(self) -> RunStore:
        return RunStore(self.out)

    def ids(self) -> list[str]:
        return [run.id for run in self.results.runs]


def train(out: Path) -> Study:
    """Run the small study, or what is missing of it."""
    return Study(out, run_study(make_recipe(SMALL), out))


def comparable(results: StudyResults) -> StudyResults:
    """Return results without the time that training took."""
    return replace(results, runs=[replace(run, seconds=0.0) for run in results.runs])


def trained_content(out: Path) -> dict[str, bytes]:
    """Return the content of all finished runs, without run.json, which has the time of training."""
    content = folder_content(out / "models")
    return {
        name: value
        for name, value in content.items()
        if not name.endswith("run.json") and ".damaged" not in name
    }
