"""What a person sees while a study trains, where standard error is not a terminal."""

from types import SimpleNamespace

import pytest

from distill.study import progress as module
from distill.study.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_printed_as_they_are(capsys):
    with Progress(enabled=True) as progress:
        progress.log("data: [bold]x[/bold] 1/2")
    assert capsys.readouterr().err == "data: [bold]x[/bold] 1/2\n"


def test_other_processes_print_nothing(capsys):
    with Progress(enabled=False) as progress:
        progress.log("line")
        assert list(progress.track([1, 2], "title", "things")) == [1, 2]
        with progress.epochs("cohort", 2, done=1) as bar:
            bar.update(2, 100.0, [0.5])
    assert capsys.readouterr() == ("", "")


def test_epochs_are_a_line_now_and_then_and_one_at_the_end(capsys, clock):
    with Progress(enabled=True) as progress, progress.epochs("cohort [x]", 100) as bar:
        for epoch in range(1, 101):
            clock[0] += 10
            bar.update(epoch, 1234.5, [0.5, 0.625])
    lines = capsys.readouterr().err.splitlines()
    # One line in 30 seconds, of three epochs; the last epoch has the final line alone.
    assert len(lines) == 33 + 1
    assert all(line.startswith("cohort [x]: ") for line in lines)
    assert "epoch 3/100" in lines[0] and "16.2 min" in lines[0]
    assert "1,234 images/s" in lines[0] and "50.0%, 62.5%" in lines[0]
    assert "100 epochs in 1000.0 s" in lines[-1]


def test_resumed_epochs_count_only_their_own_time(capsys, clock):
    with (
        Progress(enabled=True) as progress,
        progress.epochs("cohort", 10, done=4, steps_done=7) as bar,
    ):
        clock[0] += 60
        bar.update(5, 1.0, [0.5])
    lines = capsys.readouterr().err.splitlines()
    assert "4 epochs" in lines[0] and "7 steps" in lines[0]
    assert "epoch 5/10, 5.0 min" in lines[1]
    assert "5 epochs in 60.0 s" in lines[2]


def test_tracked_things_are_counted(capsys, clock):
    with Progress(enabled=True) as progress:
        for _ in progress.track(range(4), "analysing", "networks"):
            clock[0] += 30
        assert not list(progress.track([], "nothing", "things"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "1/4 networks, 1.5 min" in lines[0]
    assert "4 networks in 120.0 s" in lines[-1]


@pytest.mark.parametrize(
    ("is_jupyter", "has_widgets", "is_terminal", "expected"),
    [
        (True, True, False, True),
        (True, False, False, False),  # rich would print a warning in place of bars
        (False, True, True, True),
        (False, True, False, False),
    ],
)
def test_bars_are_drawn_in_a_terminal_and_in_a_notebook_with_widgets(
    monkeypatch, is_jupyter, has_widgets, is_terminal, expected
):
    monkeypatch.setattr(module, "find_spec", lambda _: has_widgets or None)
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert module._shows_bars(SimpleNamespace(is_jupyter=is_jupyter)) == expected
