"""A finished study that the tests of stored files damage, each in a copy of its own."""

import shutil

import pytest
from helpers.small_study import Study, train


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Study:
    """The finished study, not to be changed."""
    return train(tmp_path_factory.mktemp("finished") / "runs")


@pytest.fixture
def study(finished, tmp_path) -> Study:
    """A copy of the finished study."""
    shutil.copytree(finished.out, tmp_path / "runs")
    return Study(tmp_path / "runs", finished.results)
