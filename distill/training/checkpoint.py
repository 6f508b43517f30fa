"""A member of a cohort: one run while it trains, how it starts, and how it goes on from a checkpoint."""

from collections.abc import Callable

import torch

from distill.storage.run_store import RunStore
from distill.training.optim import _lay_out
from distill.training.state import TrainState

# ---------------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(member: TrainState, store: RunStore) -> None:
    """All that the next step depends on."""
    store.checkpoints.save(
        member.run.id,
        {
            "epoch": member.epoch,
            "step": member.step,
            "lr": member.lr,
            "sums": member.sums,
            "seconds": member.seconds,
            "history": member.history,
            "model": member.model.state_dict(),
            "ema": member.ema.module.state_dict() if member.ema else {},
            "optimizer": member.optimizer.state_dict(),
            "scaler": member.scaler.state_dict(),
            "parts": member.parts.state_dict(),
        },
    )


def resume(
    member: TrainState,
    store: RunStore,
    rank: int,
    device: torch.device,
    log: Callable[[str], None] = print,
) -> None:
    """Continue from the run's checkpoint, if it has one; what the processes have summed goes on in the first."""
    damaged = store.checkpoints.damaged_snapshot(member.run.id)
    if damaged:
        log(f"{damaged} is not what was written: {member.run.display_name} begins again")
        store.checkpoints.forget(member.run.id)
        return
    try:
        state = store.checkpoints.load(member.run.id)
    except ValueError as error:
        log(f"{error}: {member.run.display_name} begins again")
        return
    if state is None:
        return
    member.model.load_state_dict(state["model"])
    member.parts.load_state_dict(
        state.get("parts", {})
    )  # a checkpoint of a version without them has none
    for part in member.parts.values():
        if rank and hasattr(part, "forget"):
            part.forget()
    if member.ema:
        member.ema.module.load_state_dict(state["ema"])
    member.optimizer.load_state_dict(state["optimizer"])
    _lay_out(member.optimizer)
    member.scaler.load_state_dict(state["scaler"])
    member.epoch, member.seconds, member.history = (
        state["epoch"],
        state["seconds"],
        state["history"],
    )
    member.step, member.lr = state.get("step", 0), state.get("lr", 0.0)
    member.sums = {
        name: value.to(device) * (rank == 0) for name, value in state.get("sums", {}).items()
    }
    if member.scheduler:
        member.scheduler.step_update(member.epoch * member.steps_per_epoch + member.step)
