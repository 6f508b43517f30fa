"""Checkpoints of a run that is training: everything that its next step depends on."""

import time
from collections.abc import Callable

from distill.storage.run_store import RunStore
from distill.training.optim import match_strides
from distill.training.state import TrainContext, TrainState

# What a checkpoint consists of. One of another version may lack some, and cannot be continued.
KEYS = {
    "epoch",
    "step",
    "lr",
    "seconds",
    "history",
    "meters",
    "model",
    "ema",
    "loss_modules",
    "optimizer",
    "scaler",
}


class CheckpointTimer:
    """Says when a checkpoint is due, so that a kill loses about `minutes` of work at most."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the interval has passed since the last checkpoint."""
        return time.monotonic() - self.last >= self.seconds

    def restart(self) -> None:
        """Count from now on."""
        self.last = time.monotonic()


def save_checkpoint(student: TrainState, store: RunStore) -> None:
    """Store everything that the run's next step depends on.

    Dropout, views and the order of images are functions of (seed, epoch, step), so no generator's
    state is kept.
    """
    store.checkpoints.save(
        student.run.id,
        {
            "epoch": student.epoch,
            "step": student.step,
            "lr": student.lr,
            "seconds": student.seconds,
            "history": student.history,
            "meters": student.meters.sums,
            "model": student.model.state_dict(),
            "ema": student.ema.module.state_dict() if student.ema else {},
            "loss_modules": student.loss_modules.state_dict(),
            "optimizer": student.optimizer.state_dict(),
            "scaler": student.scaler.state_dict(),
        },
    )


def restore_checkpoint(
    student: TrainState, ctx: TrainContext, log: Callable[[str], None] = print
) -> None:
    """Continue from the run's last checkpoint, if there is one.

    A damaged checkpoint, and one of another version of this package, is dropped with a log line.

    Sums over the epoch's images, gathered by all processes, continue on process 0 only.
    """
    store = ctx.store
    damaged = store.checkpoints.damaged_snapshot(student.run.id)
    if damaged:
        log(f"{damaged} is damaged: {student.run.display_name} starts again")
        store.checkpoints.forget(student.run.id)
        return
    try:
        checkpoint = store.checkpoints.load(student.run.id)
    except ValueError as error:
        log(f"{error}: {student.run.display_name} starts again")
        return
    if checkpoint is None:
        return
    if not checkpoint.keys() >= KEYS:
        name = student.run.display_name
        log(f"{name}: its checkpoint is of another version of distill; {name} starts again")
        store.checkpoints.forget(student.run.id)
        return
    student.model.load_state_dict(checkpoint["model"])
    if student.ema:
        student.ema.module.load_state_dict(checkpoint["ema"])
    student.loss_modules.load_state_dict(checkpoint["loss_modules"])
    for module in student.loss_modules.values():
        if hasattr(module, "forget") and not ctx.dist.is_main:
            module.forget()
    student.optimizer.load_state_dict(checkpoint["optimizer"])
    match_strides(student.optimizer)
    student.scaler.load_state_dict(checkpoint["scaler"])
    student.epoch = checkpoint["epoch"]
    student.step = checkpoint["step"]
    student.lr = checkpoint["lr"]
    student.seconds = checkpoint["seconds"]
    student.history = checkpoint["history"]
    student.meters.load(checkpoint["meters"], ctx.device, ctx.dist)
    if student.scheduler:
        student.scheduler.step_update(student.epoch * student.steps_per_epoch + student.step)
