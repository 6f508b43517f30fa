"""A small study whose networks are analysed: two seeds, snapshots, attacks, views."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from helpers.recipes import TINY, make_recipe, merge
from torch import Tensor, nn

from distill.data.splits import Splits
from distill.recipe.schema import Recipe
from distill.storage.run_fingerprint import Run, plan_runs
from distill.storage.run_store import RunStore

ANALYSED = merge(
    TINY,
    {
        # At a constant learning rate, a snapshot is what a shorter run ends with.
        "train": {"schedule": "none", "snapshots": 3},
        "analysis": {
            "examples": 100,
            "num_attacked": 60,
            "num_views": 4,
            "steps": 3,
            "eps_linf": 0.1,
        },
        "teachers": {
            "smoothed": {
                "model": {"name": "mlp_32", "drop_rate": 0.2},
                "loss": {"cross_entropy": {"smoothing": 0.1}},
            },
        },
        "students": {"distilled": {"loss": {"kd": {"temperature": [1, 4]}}}},
        "seeds": [0, 1],
    },
)


@dataclass(frozen=True)
class AnalysedStudy:
    """A study whose runs are stored.

    Attributes:
        recipe: of the study.
        splits: its data.
        store: where its runs are.
    """

    recipe: Recipe
    splits: Splits
    store: RunStore

    @property
    def runs(self) -> list[Run]:
        """All runs, teachers first."""
        return plan_runs(self.recipe, self.splits.identity, "no")

    def run(self, arm: str, seed: int = 0) -> Run:
        """The run of an arm at a seed."""
        return next(run for run in self.runs if run.arm.name == arm and run.seed == seed)

    def folder(self, arm: str, seed: int = 0) -> Path:
        """The folder of a run."""
        return self.store.folder(self.run(arm, seed).id)

    def model(self, arm: str, seed: int = 0) -> nn.Module:
        """The network of a run, as timm loads it, without gradients of its weights."""
        model = timm.create_model(f"local-dir:{self.folder(arm, seed)}", pretrained=True)
        return model.eval().requires_grad_(False)

    def results(self) -> dict[str, Any]:
        """The content of the study's results.json."""
        return json.loads((self.store.root / self.recipe.name / "results.json").read_text())

    def result(self, arm: str, seed: int = 0) -> dict[str, Any]:
        """The results of a run, as results.json has them."""
        return next(
            run for run in self.results()["runs"] if run["arm"] == arm and run["seed"] == seed
        )

    def predictions(self, arm: str, seed: int = 0) -> dict[str, Tensor]:
        """The stored predictions of a run."""
        return self.store.predictions(self.run(arm, seed).id)


def analysed_recipe(*overrides: str) -> Recipe:
    """Return the recipe of the small analysed study."""
    return make_recipe(ANALYSED, *overrides, name="analysed")
