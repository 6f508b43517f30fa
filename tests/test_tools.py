"""Two minutes of what `tools/` does for longer: kills at random, and input that is wrong at random."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["torture.py", "--trials", "2", "--seed", "7"],
            "2 of 2 studies ended as the uninterrupted one",
        ),
        (["fuzz.py", "--cases", "400", "--seed", "7"], "load_case: 400 cases"),
    ],
)
def test_a_share_of(words, said):
    done = subprocess.run(
        [sys.executable, TOOLS / words[0], *words[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr[-2000:]
