"""A small share of what `tools/` does for longer: kills and wrong input, both at random."""

import importlib.util
import subprocess
import sys

import pytest
from helpers.commands import keep_signal_handlers
from helpers.recipes import ROOT

TOOLS = ROOT / "tools"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fuzz():
    """The module `tools/fuzz.py`."""
    specification = importlib.util.spec_from_file_location("fuzz", TOOLS / "fuzz.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("case", "count"), [("load_case", 200), ("image_case", 400), ("command_case", 6)]
)
def test_wrong_input_never_ends_in_a_traceback(fuzz, monkeypatch, case, count):
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    with keep_signal_handlers():
        assert fuzz.fuzz(getattr(fuzz, case), count, seed=7) == 0


def test_a_study_killed_at_random_ends_as_the_uninterrupted_one():
    # This seed kills the study once, at about two thirds of its usual duration.
    words = ["--trials", "1", "--seed", "34", "--at-once", "1"]
    done = subprocess.run(
        [sys.executable, TOOLS / "torture.py", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("1 of 1 ")
