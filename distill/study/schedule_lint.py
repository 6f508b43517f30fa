"""Notes on schedules and averages that do not fit the length of training."""

from collections.abc import Iterator
from typing import Any

import torch

from distill.errors import UserError
from distill.recipe.schema import Arm, Train
from distill.training.optim import make_scheduler

# An average of weights is noted if more than this share of it is the initial weights.
LARGEST_INITIAL_SHARE = 0.1

# Settings of timm's schedules that name epochs after which the rate changes.
EPOCH_SETTINGS = ("decay_epochs", "decay_milestones")


def schedule_notes(arm: Arm, steps_per_epoch: int) -> Iterator[str]:
    """Yield a note for each part of an arm's schedule that training never reaches.

    Args:
        arm: a trained arm.
        steps_per_epoch: number of optimizer steps of an epoch.
    """
    train = arm.train
    settings = train.schedule if isinstance(train.schedule, dict) else {"name": train.schedule}
    warmup = settings.get("warmup_epochs", 0)
    epochs = f"{train.epochs} epochs of training"
    if isinstance(warmup, int | float) and warmup >= train.epochs:
        yield (
            f"the warm-up of {warmup} epochs does not end within the {epochs}, so the learning "
            f"rate never reaches {train.lr:g}. Shorten train.schedule.warmup_epochs"
        )
    if settings.get("cooldown_epochs"):
        yield (
            f"the cool-down comes after the {epochs}, so it is never reached. Remove "
            "train.schedule.cooldown_epochs, or set lr_min for the end of training"
        )
    milestones = settings.get("decay_milestones", ())
    late = [epoch for epoch in _as_list(milestones) if epoch >= train.epochs]
    if late:
        yield (
            f"the learning rate should change at epoch {late[0]}, after the {epochs}. Change "
            "train.schedule.decay_milestones"
        )
    elif _is_constant(train, steps_per_epoch):
        yield (
            f"the schedule '{settings.get('name', 'cosine')}' does not change the learning rate "
            f"within the {epochs}. Set its {' or '.join(EPOCH_SETTINGS)}, or choose another "
            "train.schedule"
        )


def average_notes(train: Train, steps_per_epoch: int) -> Iterator[str]:
    """Yield a note if a moving average of weights consists of initial weights to a large part."""
    steps = train.epochs * steps_per_epoch
    share = train.ema**steps if train.ema else 0.0
    if share > LARGEST_INITIAL_SHARE:
        # With this decay, the initial weights are e⁻¹⁰ of the average.
        shorter = round(max(0.0, 1 - 10 / steps), 4)
        yield (
            f"after {steps} steps, {share:.0%} of the average of weights that is stored (train.ema "
            f"{train.ema:g}) are the initial weights. Use train.ema={shorter:g} or less, or train "
            "longer"
        )


def _as_list(value: Any) -> list[Any]:
    return [one for one in (value if isinstance(value, list | tuple) else [value])
            if isinstance(one, int | float)]  # fmt: skip


def _is_constant(train: Train, steps_per_epoch: int) -> bool:
    """Return whether the learning rate is the same at every step of training."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.lr)
    # What is wrong with a schedule is reported where it is made for training.
    try:
        scheduler = make_scheduler(optimizer, train, steps_per_epoch, "")
    except UserError:
        return False
    if scheduler is None:
        return False
    steps = train.epochs * steps_per_epoch
    if steps < 3:
        return False
    rates = set()
    for step in range(0, steps, max(1, steps // 1000)):
        rates.add(round(optimizer.param_groups[0]["lr"], 12))
        scheduler.step_update(step + 1)
    return len(rates) == 1
