"""A small study with every kind of stored file, and what must be equal when it is trained again."""

from pathlib import Path
from typing import Any, NamedTuple

from helpers.damage import folder_content
from helpers.recipes import TINY, make_recipe, merge

from distill import run_study
from distill.storage.run_store import RunStore

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
    results: dict[str, Any]

    @property
    def store(self) -> RunStore:
        return RunStore(self.out)

    def ids(self) -> list[str]:
        return [run["id"] for run in self.results["runs"]]


def train(out: Path) -> Study:
    """Run the small study, or what is missing of it."""
    return Study(out, run_study(make_recipe(SMALL), out))


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Return results without the time that training took."""
    runs = [run | {"seconds": None} for run in results["runs"]]
    return {**results, "runs": runs}


def trained_content(out: Path) -> dict[str, bytes]:
    """Return the content of all finished runs, without run.json, which has the time of training."""
    content = folder_content(out / "models")
    return {
        name: value
        for name, value in content.items()
        if not name.endswith("run.json") and ".damaged" not in name
    }
