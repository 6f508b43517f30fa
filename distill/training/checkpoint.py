"""Save and restore checkpoints: everything that a run's next training step depends on."""

import time
from collections.abc import Callable

from distill.storage.run_store import RunStore
from distill.training.optim import match_strides
from distill.training.state import TrainContext, TrainState

# Keys of a checkpoint. A checkpoint from another version of distill may lack some of them; training
# cannot resume from it.
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
    """Decides when a checkpoint is due: a killed run loses at most about `minutes` of work."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the interval has passed since the last checkpoint."""
        return time.monotonic() - self.last >= self.seconds

    def restart(self) -> None:
        """Restart the interval."""
        self.last = time.monotonic()


def save_checkpoint(student: TrainState, store: RunStore) -> None:
    """Store everything that the run's next step depends on.

    Dropout, views and the order of images depend on (seed, epoch, step) alone, so a checkpoint
    needs no state of a random generator.
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

    If the checkpoint is damaged or comes from another version of distill, log that and start the
    run again from its first epoch.

    The checkpoint holds the epoch's running sums over all processes, so only process 0 restores
    them.
    """
    store = ctx.store
    damaged = store.checkpoints.damaged_snapshot(student.run.id)
    if damaged:
        log(f"{damaged} is damaged; {student.run.display_name} restarts from its first epoch")
        store.checkpoints.forget(student.run.id)
        return
    try:
        checkpoint = store.checkpoints.load(student.run.id)
    except ValueError as error:
        log(f"{error}; {student.run.display_name} restarts from its first epoch")
        return
    if checkpoint is None:
        return
    if not checkpoint.keys() >= KEYS:
        name = student.run.display_name
        log(
            f"{name}: its checkpoint comes from another version of distill; the run restarts from "
            "its first epoch"
        )
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
