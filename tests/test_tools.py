"""A small share of what `tools/` does for longer: kills and wrong input, both at random."""

import importlib.util
import sys
from types import ModuleType

import pytest
import yaml
from helpers.commands import keep_signal_handlers
from helpers.recipes import ROOT, merge

pytestmark = pytest.mark.slow


def load_tool(name: str) -> ModuleType:
    """Return the module of a file in `tools/`."""
    path = ROOT / "tools" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("case", "count"), [("load_case", 200), ("image_case", 400), ("command_case", 6)]
)
def test_wrong_input_never_ends_in_a_traceback(monkeypatch, case, count):
    fuzz = load_tool("fuzz")
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    with keep_signal_handlers():
        assert fuzz.fuzz(getattr(fuzz, case), count, seed=7) == 0


def test_a_study_killed_at_random_ends_as_the_uninterrupted_one(monkeypatch, capsys):
    torture = load_tool("torture")
    smaller = {"train": {"epochs": 4}, "seeds": 1}
    recipe = merge(yaml.safe_load(torture.RECIPE), smaller)
    monkeypatch.setattr(torture, "RECIPE", yaml.safe_dump(recipe, sort_keys=False))
    # This seed kills the study once, at about three quarters of its usual duration.
    monkeypatch.setattr(sys, "argv", ["torture", "--trials", "1", "--seed", "147"])
    with pytest.raises(SystemExit) as stop:
        torture.main()
    printed = capsys.readouterr().out
    assert not stop.value.code, printed
    assert printed.splitlines()[-1].startswith("1 of 1 ")
