"""A small share of what `tools/` does for longer: kills and wrong input, both at random."""

import importlib
import sys

import pytest
import yaml
from helpers.commands import keep_signal_handlers
from helpers.recipes import ROOT, merge

pytestmark = pytest.mark.slow


@pytest.fixture
def load_tool(monkeypatch):
    """Return a function that imports a file of `tools/`, as Python does for a script."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    # For the processes that the tool starts.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return importlib.import_module


@pytest.mark.parametrize(
    ("case", "count"), [("load_case", 200), ("image_case", 400), ("command_case", 6)]
)
def test_wrong_input_never_ends_in_a_traceback(load_tool, monkeypatch, case, count):
    fuzz = load_tool("fuzz")
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    with keep_signal_handlers():
        assert fuzz.fuzz(getattr(fuzz, case), count, seed=7) == 0


def test_a_study_killed_at_random_ends_as_the_uninterrupted_one(load_tool, monkeypatch, capsys):
    torture = load_tool("torture")
    no_analysis = {"examples": 0, "num_attacked": 0, "num_views": 0}
    smaller = {"train": {"epochs": 4}, "analysis": no_analysis, "seeds": 1}
    recipe = merge(yaml.safe_load(torture.RECIPE), smaller)
    monkeypatch.setattr(torture, "RECIPE", yaml.safe_dump(recipe, sort_keys=False))
    # This seed kills the study once, at about three quarters of its usual duration.
    monkeypatch.setattr(sys, "argv", ["torture", "--trials", "1", "--seed", "147"])
    torture.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 1 ")
