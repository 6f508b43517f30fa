"""Wheel and source distribution contain the package and its recipes, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile

import pytest
from helpers.recipes import ROOT

SOURCE_SUFFIXES = (".py", ".jinja")
LISTED_IN_SOURCES = {"distill", "recipes", "pyproject.toml", "README.md", "LICENSE"}
NOT_DISTRIBUTED = {"tests", "tools", "data", "runs"}


def recipe_files():
    """Return the names of the recipes in the installed package."""
    paths = (ROOT / "recipes").rglob("*.yaml")
    return {f"distill/recipes/{path.relative_to(ROOT / 'recipes').as_posix()}" for path in paths}


def source_files():
    paths = [path for path in (ROOT / "distill").rglob("*") if path.suffix in SOURCE_SUFFIXES]
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with a wheel and a source distribution."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "ConnectionError" in done.stdout + done.stderr:
        pytest.skip("needs the build backend")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_recipes_and_runs(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert source_files() | recipe_files() <= names
    assert not [name for name in names if "__pycache__" in name]

    listed = subprocess.run(
        [sys.executable, "-c", "from distill.cli import main; main()", "recipes"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(listed.stdout.splitlines()) == len(recipe_files()), listed.stderr


@pytest.mark.slow
def test_the_source_distribution_has_what_is_needed_to_build(built):
    (archive_path,) = built.glob("*.tar.gz")
    with tarfile.open(archive_path) as archive:
        parts = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert parts >= LISTED_IN_SOURCES
    assert not parts & NOT_DISTRIBUTED
