"""Studies that several tests of training compare with: each is trained once a session."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from helpers.recipes import TINY, make_recipe
from helpers.training import Weights, make_context, train_study

from distill.study.context import StudyContext


class TrainedStudy(NamedTuple):
    """A study whose runs are stored, and their weights by arm. Tests must not change it."""

    ctx: StudyContext
    weights: dict[str, Weights]


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, accelerator) -> Callable[..., TrainedStudy]:
    """Return a function that trains a recipe without interruption, at its first call only."""
    studies: dict[str, TrainedStudy] = {}

    def train(document: dict, *overrides: str) -> TrainedStudy:
        recipe = make_recipe(document, *overrides)
        key = repr(recipe.source)
        if key not in studies:
            ctx = make_context(recipe, tmp_path_factory.mktemp("trained"), accelerator)
            studies[key] = TrainedStudy(ctx, train_study(ctx))
        return studies[key]

    return train


@pytest.fixture(scope="session")
def tiny_study(trained_once) -> TrainedStudy:
    """Return the trained study of `TINY`."""
    return trained_once(TINY)
