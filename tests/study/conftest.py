"""A finished study that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import Finished, command
from helpers.finished_study import STUDY
from helpers.recipes import write_recipe

from distill.study import conclude


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, Finished]:
    """The folder of a finished study and what the command printed. It must not be changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder / "tiny.yaml", STUDY)
    return folder, command(folder, "run", "tiny.yaml")


@pytest.fixture(scope="session")
def out(finished) -> Path:
    """The folder `runs` of the finished study."""
    return finished[0] / "runs"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished study's folder, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture
def no_report(monkeypatch):
    """Leave out figures and pages, which take most of the time of a tiny study."""
    monkeypatch.setattr(conclude, "write_report", lambda *_: None)
    monkeypatch.setattr(conclude, "_write_feature_plot", lambda *_: None)
