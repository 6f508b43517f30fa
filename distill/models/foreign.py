"""Networks that are not timm's: give them the attributes by which the package knows a network."""

from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.heads import find_last_layer, last_linear

# What timm needs to store a network.
NEEDED_ATTRIBUTES = ("num_classes", "num_features", "pretrained_cfg")
NEEDED_SETTINGS = ("architecture", "input_size", "mean", "std")


def describe_foreign(model: nn.Module, config: dict[str, Any]) -> None:
    """Give a network what timm's networks have: `num_classes`, `pretrained_cfg`, a last layer.

    For networks of timm this does nothing.

    Args:
        model: the network.
        config: its `pretrained_cfg` if it has none: the name ("architecture"), "input_size", "mean"
            and "std".

    Raises:
        UserError: if its output is not a tensor of logits ``[B, K]``.
    """
    is_complete = all(hasattr(model, name) for name in NEEDED_ATTRIBUTES)
    known = dict(getattr(model, "pretrained_cfg", None) or {})
    is_complete = is_complete and all(known.get(key) for key in NEEDED_SETTINGS)
    if is_complete and (hasattr(model, "get_classifier") or hasattr(model, "last_layer_name")):
        return
    # Random images: with zeros, several layers may have the same outputs.
    images = torch.rand(2, *config["input_size"], generator=torch.Generator().manual_seed(0))
    logits = logits_of(model, images)
    if not hasattr(model, "num_classes"):
        model.num_classes = logits.shape[1]
    stated = {key: value for key, value in known.items() if value}
    model.pretrained_cfg = {"num_classes": model.num_classes, **config, **stated}
    find_last_layer(model, images)
    if not hasattr(model, "num_features"):
        layer = last_linear(model)
        model.num_features = layer.weight.shape[1] if layer is not None else model.num_classes


def check_logits(output: Any, num_classes: int | None = None) -> Tensor:
    """Return the output of a network if it is a tensor of logits.

    Raises:
        UserError: if it is something else, with what to do.
    """
    if isinstance(output, Tensor) and output.ndim == 2:
        if num_classes is not None and output.shape[1] != num_classes:
            raise UserError(f"it has {output.shape[1]} outputs for {num_classes} classes")
        return output
    if isinstance(output, Tensor):
        found = f"a tensor of shape {list(output.shape)}"
    elif isinstance(output, dict):
        found = f"a dictionary with {', '.join(map(str, output))}"
    elif isinstance(output, tuple | list):
        found = f"a {type(output).__name__} of {len(output)} values"
    else:
        found = f"a {type(output).__name__}"
    raise UserError(
        f"its output is {found}, not logits [B, K]; wrap it in a module that returns the logits "
        "alone, or remove an argument such as features_only or aux_logits"
    )


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a network in eval mode, without changing its mode.

    Raises:
        UserError: if its output is not a tensor of logits.
    """
    was_training = model.training
    try:
        return check_logits(model.eval()(images))
    finally:
        model.train(was_training)
