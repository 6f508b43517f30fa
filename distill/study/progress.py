"""What a person sees while a study trains: bars in a terminal, a line now and then in a file."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from distill.errors import pluralize

T = TypeVar("T")

# Seconds between two lines about one task, where no bars can be drawn.
LINE_INTERVAL = 30.0


class Progress:
    """Bars in a terminal or a notebook, else plain lines.

    Args:
        enabled: whether anything is printed; false on all processes but the main one.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=not enabled, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and _shows_bars(self.console)),
        )

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bars away, so that something else can be printed to standard output."""
        self.bars.stop()
        yield
        self.bars.start()

    def log(self, text: str) -> None:
        """Print a line, above the bars."""
        self.console.print(text, markup=False)

    def track(self, things: Sequence[T], title: str, unit: str) -> Iterator[T]:
        """Yield things one by one, showing how many are done and the time left."""
        started = time.monotonic()
        last_line = started
        bar = self.bars.add_task(title, total=len(things), rate="", unit=unit)
        for done, thing in enumerate(things):
            now = time.monotonic()
            if self.bars.disable and now - last_line >= LINE_INTERVAL:
                last_line = now
                minutes_left = (now - started) / done * (len(things) - done) / 60
                self.log(f"{title}: {done}/{len(things)} {unit}, {minutes_left:.1f} min left")
            yield thing
            self.bars.update(bar, completed=done + 1)
        self.bars.remove_task(bar)
        if things:
            self.log(f"{title}: {len(things)} {unit} in {time.monotonic() - started:.1f} s")

    @contextmanager
    def epochs(
        self, title: str, total: int, *, done: int = 0, steps_done: int = 0
    ) -> Iterator["EpochProgress"]:
        """Show the epochs of one cohort, from where its checkpoints continue."""
        if done or steps_done:
            within = f" and {pluralize(steps_done, 'step')}" if steps_done else ""
            self.log(f"{title}: continues after {pluralize(done, 'epoch')}{within}")
        bar = self.bars.add_task(escape(title), total=total, completed=done, rate="", unit="epochs")
        epoch_progress = EpochProgress(self, bar, title, total, done)
        yield epoch_progress
        self.bars.remove_task(bar)
        epoch_progress.log_end()


def _shows_bars(console: Console) -> bool:
    """Return whether bars can be drawn: in a terminal, and in a notebook that has widgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return sys.stderr.isatty()


class EpochProgress:
    """The bar, or the lines, of one cohort."""

    def __init__(self, progress: Progress, bar: TaskID, title: str, total: int, first: int) -> None:
        self.progress = progress
        self.bar = bar
        self.title = title
        self.total = total
        self.first = first
        self.done = first
        self.status = ""
        self.started = time.monotonic()
        self.last_line = self.started

    def update(self, done: int, images_per_second: float, accuracies: Sequence[float]) -> None:
        """Show that `done` epochs are done, the speed, and each run's validation accuracy in [0,
        1].
        """
        self.done = done
        rate = f"{images_per_second:,.0f} images/s"
        self.status = f"{rate}, validation {', '.join(f'{value:.1%}' for value in accuracies)}"
        self.progress.bars.update(self.bar, completed=done, rate=rate)
        now = time.monotonic()
        is_quiet = now - self.last_line < LINE_INTERVAL
        if not self.progress.bars.disable or done == self.total or is_quiet:
            return
        self.last_line = now
        seconds_per_epoch = (now - self.started) / (done - self.first)
        minutes_left = seconds_per_epoch * (self.total - done) / 60
        self.progress.log(
            f"{self.title}: epoch {done}/{self.total}, {minutes_left:.1f} min left, {self.status}"
        )

    def log_end(self) -> None:
        """Print how long the epochs took."""
        seconds = time.monotonic() - self.started
        ending = f", {self.status}" if self.status else ""
        self.progress.log(
            f"{self.title}: {pluralize(self.done, 'epoch')} in {seconds:.1f} s{ending}"
        )
