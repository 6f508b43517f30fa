"""Create timm's optimizers and learning-rate schedules by name."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from distill.errors import UserError, suggest
from distill.recipe.schema import Train

# timm's schedules that depend on the step alone.
SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "none")


def make_optimizer(
    model: nn.Module, train: Train, name_of_run: str, loss_modules: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Create a timm optimizer for a network and for the trainable modules of its loss.

    Args:
        model: the network; timm applies no weight decay to its biases and norm layers.
        train: names the optimizer and its arguments.
        name_of_run: the run's name, for error messages.
        loss_modules: modules with weights that belong to the loss, such as a projector.

    Raises:
        UserError: if timm has no such optimizer or argument.
    """
    name, arguments = _name_and_arguments(train.optimizer, "sgd")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{name_of_run}: no weight of the network takes a gradient, so there is nothing to "
            "train; set requires_grad, or use it as a frozen teacher"
        )
    try:
        if _has_fused_form(name) and not {"foreach", "differentiable"} & arguments.keys():
            # A fused optimizer updates all weights in one pass. On a CPU, that makes SGD twice and
            # AdamW ten times as fast.
            arguments = {"fused": True, **arguments}
        optimizer = create_optimizer_v2(
            model, opt=name, lr=train.lr, weight_decay=train.weight_decay, **arguments
        )
        if loss_modules is not None:
            _add_loss_modules(optimizer, loss_modules, train.weight_decay)
    except Exception as error:
        known_names = f"; {suggest(name, list_optimizers())}" if "not found" in str(error) else ""
        raise UserError(f"{name_of_run}: train.optimizer '{name}': {error}{known_names}") from None
    return optimizer


def make_scheduler(
    optimizer: torch.optim.Optimizer, train: Train, steps_per_epoch: int, name_of_run: str
) -> Scheduler | None:
    """Create a timm schedule that steps after every update; None for a constant rate ('none').

    Raises:
        UserError: if timm has no such schedule or argument, or if it depends on a metric.
    """
    name, arguments = _name_and_arguments(train.schedule, "cosine")
    if name == "plateau":
        raise UserError(
            f"{name_of_run}: train.schedule 'plateau' depends on a metric, which is not supported; "
            "use a schedule that depends on the step alone, such as 'cosine'"
        )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=train.epochs,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            **arguments,
        )
    except Exception as error:
        hint = f"; {suggest(name, SCHEDULES)}" if "nknown" in str(error) else ""
        raise UserError(f"{name_of_run}: train.schedule '{name}': {error}{hint}") from None
    return scheduler


def match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the strides of its weights.

    Fused optimizers go through memory in order and do not check strides. A state that was loaded
    from a file is always contiguous, but the weights may be channels-last.
    """
    # timm's lookahead wraps another optimizer.
    inner = getattr(optimizer, "_base_optimizer", optimizer)
    for weight, state in inner.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _name_and_arguments(setting: str | dict[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    if isinstance(setting, str):
        return setting, {}
    arguments = dict(setting)
    name = arguments.pop("name", default)
    return name, arguments


def _has_fused_form(name: str) -> bool:
    base_name = name.lower().rsplit("_", 1)[-1]  # lookahead_adamw is adamw with lookahead around it
    optimizer_class = get_optimizer_class(base_name, bind_defaults=False)
    return "fused" in inspect.signature(optimizer_class).parameters


def _add_loss_modules(
    optimizer: torch.optim.Optimizer, loss_modules: nn.Module, weight_decay: float
) -> None:
    """Add the loss modules' weights to the optimizer; as in the network, biases do not decay."""
    matrices = [p for p in loss_modules.parameters() if p.ndim > 1]
    vectors = [p for p in loss_modules.parameters() if p.ndim <= 1]
    for weights, decay in ((matrices, weight_decay), (vectors, 0.0)):
        if weights:
            optimizer.add_param_group({"params": weights, "weight_decay": decay})
