"""A trained study and the context of its analyses, shared by all tests of the evaluation."""

import pytest
import torch
from helpers.analysed_study import AnalysedStudy, analysed_recipe
from helpers.training import train_study

from distill.data.splits import load_splits
from distill.evaluation.analyse import AnalysisContext
from distill.storage.run_store import RunStore
from distill.study.context import StudyContext
from distill.study.progress import Progress


@pytest.fixture(scope="session")
def trained(tmp_path_factory, accelerator) -> AnalysedStudy:
    """Twelve trained runs; do not change their files."""
    recipe = analysed_recipe()
    splits = load_splits(recipe.data)
    store = RunStore(tmp_path_factory.mktemp("trained") / "runs")
    train_study(StudyContext(recipe, splits, store, accelerator, Progress(enabled=False)))
    return AnalysedStudy(recipe, splits, store)


@pytest.fixture
def analysis(trained):
    """Make the context of an analysis, with changes to its settings."""

    def make(**changes) -> AnalysisContext:
        settings = trained.recipe.analysis.model_copy(update=changes)
        seeds = trained.recipe.seeds
        device = torch.device("cpu")
        return AnalysisContext(trained.splits, trained.store, settings, device, seeds)

    return make
