"""What the tests share: one thread (tiny networks are slower with two), short studies on the embedded digits."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start, too

from pathlib import Path

import hypothesis
import pytest
import torch
from accelerate import Accelerator
from helpers.analysed_study import TrainedStudy, analysed_recipe
from helpers.recipes import TINY_YAML

from distill import load_recipe, run_study
from distill.data.splits import load_splits
from distill.recipe.schema import Recipe
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext
from distill.study.progress import Progress

torch.set_num_threads(1)
hypothesis.settings.register_profile("distill", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("distill")


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A recipe of four small runs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_YAML)
    return path


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def study_context(tmp_path, accelerator):
    """Makes what the parts of a study work with, for a recipe's path or object."""

    def make(recipe: Path | Recipe, *overrides: str, out: str = "runs") -> StudyContext:
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
        return StudyContext(
            recipe, load_splits(recipe.data), RunStore(tmp_path / out), accelerator, Progress(False)
        )

    return make


@pytest.fixture(scope="session")
def analysed_study(tmp_path_factory) -> TrainedStudy:
    """Run the small analysed study from recipe to report; do not change its files."""
    recipe = analysed_recipe()
    root = tmp_path_factory.mktemp("analysed_study") / "runs"
    run_study(recipe, root)
    return TrainedStudy(recipe, load_splits(recipe.data), RunStore(root))
