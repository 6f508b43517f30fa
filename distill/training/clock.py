"""Measure how long training takes."""

import time

from distill.training.state import TrainContext, TrainState


class EpochClock:
    """Measures one epoch of a cohort: images per second, and the training time of each student.

    Attributes:
        images_per_epoch: number of images in a whole epoch, over all processes.
    """

    def __init__(self, students: list[TrainState], ctx: TrainContext) -> None:
        first = students[0]
        batch_size = ctx.global_batch_size(first.train)
        self.images_per_epoch = first.steps_per_epoch * batch_size
        self.images_left = (first.steps_per_epoch - first.step) * batch_size
        self.started = time.monotonic()
        self.last_charge = self.started

    def images_per_second(self) -> float:
        """Return the average speed over all processes; call it at the end of the epoch."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return self.images_left / seconds

    def charge_time(self, students: list[TrainState]) -> None:
        """Add the time since the last charge to the students, in equal shares."""
        now = time.monotonic()
        for student in students:
            student.seconds += (now - self.last_charge) / len(students)
        self.last_charge = now

    def exclude_since_last_charge(self) -> None:
        """Discard the time since the last charge, which was not spent on training."""
        self.last_charge = time.monotonic()
