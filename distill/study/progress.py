"""What a person sees while a study trains: bars in a terminal, a line now and then in a file."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from distill.errors import pluralize

T = TypeVar("T")
QUIET_SECONDS = 30.0  # between two lines of one task, where no bars can be drawn


class Progress:
    """Bars where standard error is a terminal, else plain lines; nothing on any but the main process."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, highlight=False, quiet=not enabled, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and sys.stderr.isatty()),
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

    def log(self, text: str) -> None:
        """A line, above the bars."""
        self.console.print(text, markup=False)

    def each(self, title: str, things: Sequence[T], unit: str) -> Iterator[T]:
        """The things one by one, with a bar, or lines now and then, that tells how far they are."""
        began = spoken = time.monotonic()
        bar = self.bars.add_task(title, total=len(things), rate="", unit=unit)
        for done, thing in enumerate(things):
            now = time.monotonic()
            if self.bars.disable and now - spoken >= QUIET_SECONDS:
                spoken, left = now, (now - began) / done * (len(things) - done)
                self.log(f"{title}: {done}/{len(things)} {unit}, {left / 60:.1f} min left")
            yield thing
            self.bars.update(bar, completed=done + 1)
        self.bars.remove_task(bar)
        if things:
            self.log(f"{title}: {len(things)} {unit} in {time.monotonic() - began:.1f} s")

    @contextmanager
    def task(
        self, title: str, epochs: int, done: int, step: int = 0
    ) -> Iterator[Callable[[int, int, float, str], None]]:
        """A bar (or lines) for one cohort; call what it gives after each epoch."""
        from rich.markup import escape

        began = spoken = time.monotonic()
        bar = self.bars.add_task(
            escape(title), total=epochs, completed=done, rate="", unit="epochs"
        )
        if done or step:
            self.log(f"{title}: continues after epoch {done}{f' and {step} steps' if step else ''}")
        last: tuple[int, float, str] = (done, 0.0, "")

        def log(epoch: int, total: int, rate: float, accuracies: str) -> None:
            nonlocal spoken, last
            last = (epoch, rate, accuracies)
            self.bars.update(bar, completed=epoch, rate=f"{rate:,.0f} images/s")
            now = time.monotonic()
            if self.bars.disable and epoch < total and now - spoken >= QUIET_SECONDS:
                spoken = now
                left = (now - began) / (epoch - done) * (total - epoch)
                self.log(
                    f"{title}: epoch {epoch}/{total}, {rate:,.0f} images/s, {left / 60:.1f} min left, "
                    f"validation {accuracies}"
                )

        yield log
        self.bars.remove_task(bar)
        epoch, rate, accuracies = last
        self.log(
            f"{title}: {pluralize(epoch, 'epoch')} in {time.monotonic() - began:.1f} s, {rate:,.0f} images/s, "
            f"validation {accuracies}"
        )
