"""A finished study that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import Finished, command
from helpers.finished_study import STUDY
from helpers.recipes import write_recipe
from matplotlib.figure import Figure

from distill.report import style
from distill.study import finish_study


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
    monkeypatch.setattr(finish_study, "write_report", lambda *_: None)
    monkeypatch.setattr(finish_study, "_write_feature_plot", lambda *_: None)


@pytest.fixture
def svg_only(monkeypatch):
    """Write figures as SVG alone, which saves half of the time of drawing."""

    def save(figure: Figure, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.svg"
        with style.plt.rc_context(style.STYLE):
            figure.savefig(path, bbox_inches="tight")
        style.plt.close(figure)
        return path

    monkeypatch.setattr(style, "save", save)


@pytest.fixture
def no_drawing(monkeypatch):
    """Make figures without drawing them: their files are empty."""

    def save(figure: Figure, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.svg"
        path.touch()
        style.plt.close(figure)
        return path

    monkeypatch.setattr(style, "save", save)
