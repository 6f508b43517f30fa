"""Run `distill` commands, in this process or in processes of their own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from distill import cli

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PYTHON = (sys.executable,)
TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Finished:
    """What a command printed."""

    out: str
    err: str


def command(folder: Path, *words: str | Path, status: int = 0) -> Finished:
    """Run a command in this process and check its exit status.

    Args:
        folder: the current folder of the command.
        words: what follows `distill`.
        status: that is expected.
    """
    out = io.StringIO()
    err = io.StringIO()
    with (
        contextlib.chdir(folder),
        patch.object(sys, "argv", ["distill", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        keep_signal_handlers(),
    ):
        found = _exit_status()
    assert found == status, f"{words}: status {found}\n{out.getvalue()}{err.getvalue()}"
    return Finished(out.getvalue(), err.getvalue())


def _exit_status() -> int:
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers that the program replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(
    folder: Path, *words: str | Path, launcher: Sequence[str | Path] = (*PYTHON, "-m", "distill")
) -> subprocess.Popen[str]:
    """Start a command in a process of its own, as a person in a terminal would.

    Args:
        folder: the current folder of the command.
        words: what follows the launcher.
        launcher: the program.
    """
    root = Path(cli.__file__).parent.parent
    paths = [str(root), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [str(word) for word in (*launcher, *words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        # A job in the background would inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], status: int | None = 0) -> Finished:
    """Wait for a command and check its exit status; None stands for any but 0."""
    out, err = process.communicate(timeout=TIMEOUT)
    is_expected = process.returncode != 0 if status is None else process.returncode == status
    assert is_expected, f"status {process.returncode}\n{out}{err}"
    return Finished(out, err)
