"""The time that training takes."""

import time

from distill.training.state import TrainContext, TrainState


class EpochClock:
    """Measures an epoch: images per second, and the training time of each student."""

    def __init__(self, students: list[TrainState]) -> None:
        self.train = students[0].train
        self.steps_per_epoch = students[0].steps_per_epoch
        self.first_step = students[0].step
        self.started = time.monotonic()
        self.last_lap = self.started

    def images(self, ctx: TrainContext) -> int:
        """Return the training images of a whole epoch."""
        return self.steps_per_epoch * ctx.batch_size(self.train)

    def images_per_second(self, ctx: TrainContext) -> float:
        """Return the images trained on since the start, over all processes, each second."""
        steps = self.steps_per_epoch - self.first_step
        seconds = max(time.monotonic() - self.started, 1e-9)
        return steps * ctx.batch_size(self.train) / seconds

    def share_time(self, students: list[TrainState]) -> None:
        """Add the time since the last call to the students, in equal shares."""
        now = time.monotonic()
        for student in students:
            student.seconds += (now - self.last_lap) / len(students)
        self.last_lap = now

    def skip(self) -> None:
        """Leave out the time since the last call, which was not spent on training."""
        self.last_lap = time.monotonic()
