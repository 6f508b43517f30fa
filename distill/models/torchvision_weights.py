"""Convert weights of torchvision's networks for the same networks of timm.

Both libraries have many networks in common, with other names for their tensors. The tensors are in
almost the same order, since the layers are. A conversion by order is a guess, so it is kept only if
both networks compute the same features.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn

from distill.models.heads import find_last_layer, last_linear

# Largest difference of the features, relative to the largest feature. Small differences come from
# constants such as the epsilon of batch normalisation; a wrong conversion differs by about 1.
TOLERANCE = 0.05

State = dict[str, Tensor]


def convert_from_torchvision(state: State, model: nn.Module) -> tuple[State, str]:
    """Return weights of torchvision under timm's names.

    Args:
        state: tensors under torchvision's names, with the last layer.
        model: timm's network, with any number of classes; its weights do not change.

    Returns:
        the tensors, and a sentence on their origin; nothing and an empty text if they are not
        those of a network of torchvision, or if the two networks do not compute the same.
    """
    last = list(state.values())[-1] if state else torch.tensor(0)
    if last.ndim == 0:
        return {}, ""
    for name in _networks_with(state):
        original = _create(name, len(last))
        original.load_state_dict(state, strict=False)
        converted = _by_order(state, model)
        difference = _difference(original.eval(), model, converted) if converted else 1.0
        if difference <= TOLERANCE:
            return converted, (
                f"the weights are those of torchvision's {name}; the features of both networks "
                f"differ by at most {difference:.1e} of the largest"
            )
    return {}, ""


def _create(name: str, classes: int) -> nn.Module:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of later versions with other initial weights
        return torchvision.models.get_model(name, weights=None, num_classes=classes)


def _networks_with(state: State) -> Iterator[str]:
    """Yield the names of torchvision's networks that have tensors of these names and shapes."""
    for name in torchvision.models.list_models(module=torchvision.models):
        # Some networks cannot be built without memory.
        try:
            with torch.device("meta"):
                expected = _create(name, len(list(state.values())[-1])).state_dict()
        except (NotImplementedError, RuntimeError):
            continue
        shapes = {key: tensor.shape for key, tensor in expected.items() if key in state}
        if len(shapes) >= len(state) and all(shapes[key] == state[key].shape for key in state):
            yield name


def _by_order(state: State, model: nn.Module) -> State | None:
    """Give each tensor of a network the first free one of equal size, but for its last layer."""
    expected = model.state_dict()
    last = [name for name, p in model.named_parameters() if _is_of_last_layer(p, model)]
    free = list(state.values())
    converted: State = {}
    if last:
        # The last layer may have another number of classes.
        head = free[-len(last) :]
        free = free[: -len(last)]
        converted = dict(zip(last, head, strict=True))
    for name, tensor in expected.items():
        if name in last:
            continue
        match = next(
            (
                i
                for i, one in enumerate(free)
                if one.numel() == tensor.numel() and one.dtype == tensor.dtype
            ),
            None,
        )
        if match is None:
            return None
        converted[name] = free.pop(match).reshape(tensor.shape)
    return converted


def _is_of_last_layer(parameter: nn.Parameter, model: nn.Module) -> bool:
    layer = last_linear(model)
    own = layer.parameters(recurse=False) if layer is not None else ()
    return any(parameter is one for one in own)


@torch.no_grad()
def _difference(original: nn.Module, model: nn.Module, converted: State) -> float:
    """Return the largest difference of the features of random images, as a share of the largest."""
    candidate = copy.deepcopy(model).eval()
    layer = last_linear(candidate)
    body = {name: tensor for name, tensor in converted.items()
            if tensor.shape == candidate.state_dict()[name].shape}  # fmt: skip
    candidate.load_state_dict(body, strict=False)
    images = torch.randn(
        2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0)
    )
    # A network that is made for another image size does not accept these.
    try:
        find_last_layer(original, images)
        expected = _features(original, images)
        found = _features(candidate, images) if layer is not None else None
    except (RuntimeError, ValueError, AssertionError):
        return 1.0
    if expected is None or found is None or expected.shape != found.shape:
        return 1.0
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12))


def _features(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return the input of the last layer, or None without one."""
    layer = last_linear(model)
    if layer is None:
        return None
    features: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0])):
        model(images)
    return features[0].flatten(1)
