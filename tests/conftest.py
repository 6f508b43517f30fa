"""Settings and fixtures that all tests share."""

import os

# One thread: tiny networks are slower with two. The variable is for commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from accelerate import Accelerator
from helpers.analysed_study import AnalysedStudy, analysed_recipe
from helpers.recipes import TINY, TINY_YAML, make_recipe
from helpers.training import TrainedStudy, make_context, train_study

from distill import load_recipe, run_study
from distill.data.splits import load_splits
from distill.recipe.schema import Recipe
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext

torch.set_num_threads(1)
# A busy machine is not a failure, so examples have no deadline.
hypothesis.settings.register_profile("distill", deadline=None)
hypothesis.settings.load_profile("distill")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the index of image files in a folder of these tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return the file of a recipe of four small runs (`helpers.recipes.TINY`)."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_YAML)
    return path


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    """Return an accelerator of one process on the CPU."""
    return Accelerator(cpu=True)


@pytest.fixture
def study_context(tmp_path: Path, accelerator: Accelerator) -> Callable[..., StudyContext]:
    """Return a function that makes the context of a study, in a folder of this test.

    Its arguments are a recipe (as a dictionary, an object or a file), `KEY=VALUE` overrides for a
    dictionary or a file, and the name of the folder, `out`.
    """

    def make(
        recipe: dict[str, Any] | Recipe | Path, *overrides: str, out: str = "runs"
    ) -> StudyContext:
        if isinstance(recipe, dict):
            recipe = make_recipe(recipe, *overrides)
        elif isinstance(recipe, Path):
            recipe = load_recipe(recipe, overrides)
        else:
            assert not overrides, "a Recipe is complete: give overrides to what makes it"
        return make_context(recipe, tmp_path / out, accelerator)

    return make


@pytest.fixture(scope="session")
def analysed_study(tmp_path_factory) -> AnalysedStudy:
    """Run the small analysed study from recipe to report; do not change its files."""
    recipe = analysed_recipe()
    root = tmp_path_factory.mktemp("analysed_study") / "runs"
    run_study(recipe, root)
    return AnalysedStudy(recipe, load_splits(recipe.data), RunStore(root))


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, accelerator) -> Callable[..., TrainedStudy]:
    """Return a function that trains a recipe, given as a dictionary and overrides.

    It does so at its first call only, so tests must not change what it returns.
    """
    studies: dict[str, TrainedStudy] = {}

    def train(document: dict[str, Any], *overrides: str) -> TrainedStudy:
        recipe = make_recipe(document, *overrides)
        key = repr(recipe.source)
        if key not in studies:
            ctx = make_context(recipe, tmp_path_factory.mktemp("trained"), accelerator)
            studies[key] = TrainedStudy(ctx, train_study(ctx))
        return studies[key]

    return train


@pytest.fixture(scope="session")
def tiny_study(trained_once) -> TrainedStudy:
    """Return the trained study of `helpers.recipes.TINY`; tests must not change it."""
    return trained_once(TINY)
