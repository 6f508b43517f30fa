"""Looking into networks: penultimate features, templates, feature maps, weights."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.cosine_head import CosineHead, last_linear


def last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer whose output are the logits.

    Raises:
        UserError: for networks that have no single one (two heads, token heads, auxiliary heads).
    """
    head = last_linear(model)
    if head is None:
        raise UserError(
            f"{type(model).__name__} has no single last layer, so it has no penultimate features "
            "and no templates here"
        )
    return head


def templates(model: nn.Module) -> Tensor:
    """The last layer's weight ``[K, D]``: a row is the template of a class, the paper's w_k.

    Those of a cosine head are taken at the length 1 that it gives them. Gradients reach the weight.
    """
    head = last_layer(model)
    weight = head.weight.flatten(1)
    return F.normalize(weight, dim=1) if isinstance(head, CosineHead) else weight


def weight_decay_params(model: nn.Module) -> dict[str, Tensor]:
    """The weights that a penalty is for, by name: all but biases, norms and what the model itself excepts."""
    excepted = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {name: p for name, p in model.named_parameters() if p.ndim > 1 and name not in excepted}


def stages(model: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are the feature maps of the stages, as timm lists them.

    Raises:
        UserError: if the network lists none, or none that is a module.
    """
    names = [
        info.get("module", "")
        for info in getattr(model, "feature_info", None) or ()
        if isinstance(info, dict)
    ]
    modules = dict(model.named_modules())
    found = [modules[name] for name in names if modules.get(name) is not None and name]
    if not found:
        raise UserError(f"{type(model).__name__} lists no feature maps of its stages")
    return found


@contextmanager
def capture_outputs(model: nn.Module, needs: Collection[str]) -> Iterator[dict[str, Any]]:
    """Within it, a forward pass fills the dictionary with what is asked for, as fields of `Outputs`.

    Args:
        model: the network itself, also where something around it is called.
        needs: of "features" ``[B, D]``, "templates" ``[K, D]``, "feature_maps" (each ``[B, C, H, W]``), "weights"; the
            scale of a cosine head is always told.

    Raises:
        UserError: if the network has no such thing.
    """
    seen: dict[str, Any] = {}
    handles = []
    if "features" in needs:
        hook = last_layer(model).register_forward_pre_hook(
            lambda _, inputs: seen.update(features=_flat(inputs))
        )
        handles.append(hook)
    if "feature_maps" in needs:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        seen["feature_maps"] = []

        def keep_map(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.ndim != 4:
                raise UserError(
                    f"{type(model).__name__} has no feature maps: its stages give {output.ndim} dimensions"
                )
            seen["feature_maps"].append(output.permute(0, 3, 1, 2) if last else output)

        handles += [stage.register_forward_hook(keep_map) for stage in stages(model)]
    if "templates" in needs:
        seen["templates"] = templates(model)
    if "weights" in needs:
        seen["weights"] = list(weight_decay_params(model).values())
    seen["logit_scale"] = getattr(last_linear(model), "scale", None)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, each forward pass appends its penultimate features ``[B, D]`` to the list."""
    features: list[Tensor] = []
    handle = last_layer(model).register_forward_pre_hook(
        lambda _, inputs: features.append(_flat(inputs))
    )
    try:
        yield features
    finally:
        handle.remove()


def _flat(inputs: tuple[Tensor, ...]) -> Tensor:
    """A last layer's input ``[B, D]``, also where it is a 1×1 convolution."""
    return inputs[0].flatten(1)
