"""The last layer of a network, which outputs the logits."""

import torch
from torch import Tensor, nn


def last_linear(model: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the single linear layer (or 1×1 convolution) that outputs the logits, or None."""
    # VOLO adds the logits of a second head.
    if type(model).__name__ == "VOLO":
        return None
    known_name = getattr(model, "last_layer_name", None)
    if known_name is not None:
        return model.get_submodule(known_name) if known_name else None
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if _is_linear(head):
        return head
    # A head of several layers, such as a normalisation or a small MLP before the last layer. A
    # list of heads, or a head that contains two, has no single last layer.
    if not isinstance(head, nn.Module) or isinstance(head, nn.ModuleList):
        return None
    layers = [layer for layer in head.modules() if _is_linear(layer)]
    with_logits = [layer for layer in layers if layer.weight.shape[0] == model.num_classes]
    return with_logits[0] if len(with_logits) == 1 else None


def last_linear_name(model: nn.Module) -> str | None:
    """Return the name of the last layer among the network's modules, or None."""
    head = last_linear(model)
    if head is None:
        return None
    return next(name for name, module in model.named_modules() if module is head)


@torch.no_grad()
def find_last_layer(model: nn.Module, images: Tensor) -> None:
    """Find the last layer of a network that does not tell it, as those of timm do.

    This runs the network once. The last layer is the linear layer whose output is the network's
    output. Its name is kept in the attribute `last_layer_name`, which is empty if there is none.

    Args:
        model: the network.
        images: a batch that it accepts.
    """
    if hasattr(model, "get_classifier") or hasattr(model, "last_layer_name"):
        return
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output

    layers = {name: layer for name, layer in model.named_modules() if _is_linear(layer)}
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, out, name=name: keep(name, out))
        for name, layer in layers.items()
    ]
    was_training = model.training
    try:
        logits = model.eval()(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    same = [
        name
        for name, output in outputs.items()
        if isinstance(logits, Tensor)
        and output.numel() == logits.numel()
        and torch.equal(output.reshape(logits.shape), logits)
    ]
    model.last_layer_name = same[-1] if same else ""


@torch.no_grad()
def start_small(model: nn.Module) -> None:
    """Set the weights of a new last layer to zero.

    timm initialises the head of an EfficientNet for two classes with a standard deviation of 0.4.
    The gradients of such logits destroy the pretrained features in the first steps. With zeros, all
    classes are equally likely at first, and features change as the head learns.
    """
    head = last_linear(model)
    if head is None:
        return
    head.weight.zero_()
    if head.bias is not None:
        head.bias.zero_()


def _is_linear(layer: nn.Module | None) -> bool:
    is_pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return isinstance(layer, nn.Linear) or is_pointwise
