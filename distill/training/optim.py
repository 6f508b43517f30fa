"""A member of a cohort: one run while it trains, how it starts, and how it goes on from a checkpoint."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from distill.errors import UserError, suggest
from distill.recipe.schema import Train


def make_optimizer(
    model: nn.Module, train: Train, steps_per_epoch: int, place: str, parts: nn.Module | None = None
) -> tuple[Any, Any]:
    """timm's optimizer, of the model and of what its loss learns beside it, and its scheduler (None for
    'none'), which steps on every update.

    Raises:
        UserError: if timm knows no such name or argument.
    """
    optimizer, schedule = (
        {"name": v} if isinstance(v, str) else dict(v) for v in (train.optimizer, train.schedule)
    )
    name, shape = optimizer.pop("name", "sgd"), schedule.pop("name", "cosine")
    try:
        own_name = name.lower().rsplit("_", 1)[
            -1
        ]  # timm's lookahead_adamw is adamw with something around it
        known = inspect.signature(get_optimizer_class(own_name, bind_defaults=False)).parameters
        if "fused" in known and not {"foreach", "differentiable"} & optimizer.keys():
            # one pass over the weights: twice as fast for sgd, ten times for adamw, on a CPU
            optimizer = {"fused": True} | optimizer
        made = create_optimizer_v2(
            model, opt=name, lr=train.lr, weight_decay=train.weight_decay, **optimizer
        )
        for decayed_too in (True, False):  # biases are not, as in the network
            own = [p for p in parts.parameters() if (p.ndim > 1) == decayed_too] if parts else []
            if own:
                made.add_param_group(
                    {"params": own, "weight_decay": train.weight_decay if decayed_too else 0.0}
                )
    except Exception as error:
        known = f"; {suggest(name, list_optimizers())}" if "not found" in str(error) else ""
        raise UserError(f"{place}: train.optimizer '{name}': {error}{known}") from None
    if shape == "plateau":
        raise UserError(
            f"{place}: train.schedule 'plateau' depends on a metric; use one that is a function of time"
        )
    try:
        scheduler, _ = create_scheduler_v2(
            made,
            sched=shape,
            num_epochs=train.epochs,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **schedule,
        )
    except Exception as error:
        raise UserError(f"{place}: train.schedule '{shape}': {error}") from None
    return made, scheduler


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer holds the strides of its weights: fused ones go through memory and do not look."""
    optimizer = getattr(optimizer, "_base_optimizer", optimizer)  # within timm's lookahead
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
