"""Access to the inside of networks: features, templates, feature maps and weights."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import UserError
from distill.models.cosine_head import CosineHead
from distill.models.heads import last_linear


def last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the layer that outputs the logits; its inputs are the penultimate features.

    Raises:
        UserError: if there is no single such layer (two heads, token heads, auxiliary heads).
    """
    head = last_linear(model)
    if head is None:
        raise UserError(
            f"{type(model).__name__} has no single linear layer that outputs the logits, so it has "
            "no penultimate features and no templates; use another network, or losses that need "
            "neither"
        )
    return head


def templates(model: nn.Module) -> Tensor:
    """Return the templates ``[K, D]``: row k of the last layer's weight is that of class k.

    The templates of a cosine head have length 1, as in its logits. Gradients reach the weight.
    """
    head = last_layer(model)
    weight = head.weight.flatten(1)
    return F.normalize(weight, dim=1) if isinstance(head, CosineHead) else weight


def weight_decay_params(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that weight decay applies to, by name.

    Weight decay excludes biases, the parameters of normalisation layers, and those that the model
    itself excludes.
    """
    excluded = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name not in excluded
    }


def stage_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the feature maps of the stages, first stage first.

    timm lists them in the attribute `feature_info`.

    Raises:
        UserError: if the network lists no modules.
    """
    found = [module for module, _ in _stages(model)]
    if not found:
        raise UserError(
            f"{type(model).__name__} lists no feature maps of its stages in `feature_info`; use "
            "another network, or losses without feature maps"
        )
    return found


def _stages(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Return the module of each stage and the number of channels of its feature map."""
    modules = dict(model.named_modules())
    found = []
    for info in getattr(model, "feature_info", None) or ():
        name = info.get("module", "") if isinstance(info, dict) else ""
        if name and name in modules:
            found.append((modules[name], info.get("num_chs", 0)))
    return found


@contextmanager
def capture_outputs(model: nn.Module, needs: Collection[str]) -> Iterator[dict[str, Any]]:
    """Capture the outputs of a network that losses need besides its logits.

    Within the context, a forward pass fills the dictionary. Its keys are fields of `Outputs`:

    - "features": penultimate features ``[B, D]``.
    - "templates": ``[K, D]``.
    - "feature_maps": the output of each stage, ``[B, C, H, W]``, first stage first.
    - "weights": the parameters that weight decay applies to.
    - "logit_scale": the scale of a cosine head, else None. This key is always present.

    Args:
        model: the network itself, also if the forward pass calls a wrapper of it.
        needs: which keys to capture.

    Raises:
        UserError: if the network lacks one of these outputs.
    """
    captured: dict[str, Any] = {}
    # The handle of a hook is a context manager that removes the hook.
    with ExitStack() as hooks:
        if "features" in needs:
            hooks.enter_context(_capture_features_into(captured, model))
        if "feature_maps" in needs:
            captured["feature_maps"] = []
            for handle in _capture_maps_into(captured["feature_maps"], model):
                hooks.enter_context(handle)
        if "templates" in needs:
            captured["templates"] = templates(model)
        if "weights" in needs:
            captured["weights"] = list(weight_decay_params(model).values())
        captured["logit_scale"] = getattr(last_linear(model), "scale", None)
        yield captured


@contextmanager
def capture_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Capture penultimate features: each forward pass appends ``[B, D]`` to the list."""
    features: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(_flatten_features(inputs))

    with last_layer(model).register_forward_pre_hook(keep):
        yield features


@torch.no_grad()
def check_features(model: nn.Module) -> None:
    """Capture the penultimate features of a network once, if it has a single last layer.

    Args:
        model: the network, in eval mode.

    Raises:
        UserError: if the last layer does not get features ``[B, D]``, once for each batch.
    """
    layer = last_linear(model)
    if layer is None:
        return
    device = next(model.parameters()).device
    with capture_features(model) as features:
        model(torch.zeros(2, *model.pretrained_cfg["input_size"], device=device))
    shapes = [list(one.shape) for one in features]
    expected = [2, layer.weight.flatten(1).shape[1]]
    if shapes != [expected]:
        raise UserError(
            f"the inputs of its last layer have the shapes {shapes} for two images, instead of one "
            f"of {expected}, so it has no penultimate features"
        )


def _capture_features_into(captured: dict[str, Any], model: nn.Module) -> RemovableHandle:
    """Let each forward pass replace ``captured["features"]``."""

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured["features"] = _flatten_features(inputs)

    return last_layer(model).register_forward_pre_hook(keep)


def _capture_maps_into(feature_maps: list[Tensor], model: nn.Module) -> list[RemovableHandle]:
    """Let each forward pass append the output of each stage to the list."""
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def keep(channels: int, output: Any) -> None:
        feature_map = _main_map(output, channels)
        if feature_map is None:
            shape = getattr(output, "shape", None)
            kind = f"{len(shape)} dimensions" if shape else f"the type {type(output).__name__}"
            raise UserError(
                f"{type(model).__name__} has no feature maps: the outputs of its stages have {kind}"
            )
        feature_maps.append(feature_map.permute(0, 3, 1, 2) if channels_last else feature_map)

    stage_modules(model)  # which are needed
    return [
        stage.register_forward_hook(
            lambda _module, _inputs, output, channels=channels: keep(channels, output)
        )
        for stage, channels in _stages(model)
    ]


def _main_map(output: Any, channels: int) -> Tensor | None:
    """Return the feature map in the output of a stage, or None.

    A stage may give several tensors: a map with class tokens, the input of a skip connection, or
    maps of several resolutions. The one with the stage's number of channels is meant, else the
    last, which has the lowest resolution.
    """
    tensors = output if isinstance(output, tuple | list) else [output]
    maps = [one for one in tensors if isinstance(one, Tensor) and one.ndim == 4]
    with_channels = [one for one in maps if one.shape[1] == channels]
    return with_channels[0] if with_channels else (maps[-1] if maps else None)


def _flatten_features(inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the last layer's input as ``[B, D]``; a 1×1 convolution has ``[B, D, 1, 1]``."""
    return inputs[0].flatten(1)
