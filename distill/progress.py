"""What a person sees while a study trains: bars in a terminal, a line now and then in a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

QUIET_SECONDS = 30.0  # between two lines of one task, where no bars can be drawn


class Progress:
    """Bars where standard error is a terminal, else plain lines; nothing on any but the main process."""

    def __init__(self, speaking: bool) -> None:
        self.speaking = speaking
        self.console = Console(stderr=True, highlight=False, quiet=not speaking, soft_wrap=True)
        self.bars = Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
                         TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=self.console,
                         disable=not (speaking and sys.stderr.isatty()))

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """A line, above the bars."""
        self.console.print(text, markup=False)

    @contextmanager
    def task(self, title: str, epochs: int, done: int) -> Iterator[Callable[[int, int, float, str], None]]:
        """A bar (or lines) for one cohort; call what it gives after each epoch."""
        from rich.markup import escape

        began = spoken = time.monotonic()
        bar = self.bars.add_task(escape(title), total=epochs, completed=done, rate="")
        if done:
            self.say(f"{title}: continues after epoch {done}")
        last: tuple[int, float, str] = (done, 0.0, "")

        def log(epoch: int, total: int, rate: float, accuracies: str) -> None:
            nonlocal spoken, last
            last = (epoch, rate, accuracies)
            self.bars.update(bar, completed=epoch, rate=f"{rate:,.0f} images/s")
            now = time.monotonic()
            if self.bars.disable and epoch < total and now - spoken >= QUIET_SECONDS:
                spoken = now
                left = (now - began) / (epoch - done) * (total - epoch)
                self.say(f"{title}: epoch {epoch}/{total}, {rate:,.0f} images/s, {left / 60:.1f} min left, "
                         f"validation {accuracies}")

        yield log
        self.bars.remove_task(bar)
        epoch, rate, accuracies = last
        self.say(f"{title}: {epoch} epochs in {time.monotonic() - began:.1f} s, {rate:,.0f} images/s, "
                 f"validation {accuracies}")
