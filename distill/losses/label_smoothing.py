"""Label smoothing: its two forms, the targets it makes, and the optimum it leads to."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from distill.losses.tensor_ops import to_float32

__all__ = ["convert_smoothing", "optimal_logit_gap", "smoothed_targets"]

SmoothOver = Literal["all", "wrong"]
"""Which classes share the smoothing mass: all K of them, or the K - 1 wrong ones."""

UnitInterval = Annotated[float, Ge(0), Le(1)]


def uniform_mass(smoothing: float, num_classes: int, smooth_over: SmoothOver = "all") -> float:
    """Return the mass over all K classes that gives the same target as `smoothing`.

    Args:
        smoothing: Mass that is taken from the label. It is in [0, 1] over all classes, and in
            [0, (K - 1) / K] over the wrong ones. The largest value gives the uniform target.
        num_classes: K.
        smooth_over: Which classes share the mass.

    Raises:
        ValueError: If smoothing is out of its range. PyTorch accepts negative values.
    """
    highest = 1.0 if smooth_over == "all" else (num_classes - 1) / num_classes
    if not 0 <= smoothing <= highest:
        message = (
            f"smoothing over {smooth_over} classes must be in [0, {highest:g}] for "
            f"{num_classes} classes, got {smoothing:g}"
        )
        if smoothing > highest:
            message += "; a larger value makes the wrong classes more likely than the right one"
        raise ValueError(message)
    if smooth_over == "all":
        return smoothing
    return min(1.0, smoothing * num_classes / max(num_classes - 1, 1))


def convert_smoothing(smoothing: float, num_classes: int, to: SmoothOver) -> float:
    """Convert a smoothing mass to the other form, so that the target stays the same.

    ``a' = a (K - 1) / K`` converts to the wrong classes, ``a = a' K / (K - 1)`` to all classes.

    Args:
        smoothing: Mass in the form that is not `to`.
        num_classes: K.
        to: The form to convert to.

    Raises:
        ValueError: If smoothing is out of its range.
    """
    if to == "all":
        return uniform_mass(smoothing, num_classes, "wrong")
    return uniform_mass(smoothing, num_classes) * (num_classes - 1) / num_classes


def smoothed_targets(
    labels: Tensor,
    num_classes: int,
    smoothing: float,
    smooth_over: SmoothOver = "all",
    prior: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Return the smoothed target distributions ``[B…, K]`` (classes last), at least in float32.

    Args:
        labels: Classes ``[B…]``, or distributions ``[B…, K]``.
        num_classes: K.
        smoothing: Mass that is taken from the label.
        smooth_over: Which classes share the mass, as in `cross_entropy`.
        prior: A distribution ``[K]`` that gets the mass instead.

    Raises:
        ValueError: If smoothing is out of its range or the prior is not a distribution ``[K]``.
    """
    if labels.is_floating_point():
        target = to_float32(labels)
    else:
        target = F.one_hot(labels, num_classes).float()
    if prior is not None:
        return (1 - smoothing) * target + smoothing * prior_tensor(prior, num_classes, target)
    mass = uniform_mass(smoothing, num_classes, smooth_over)
    return (1 - mass) * target + mass / num_classes


def optimal_logit_gap(num_classes: int, smoothing: float, smooth_over: SmoothOver = "all") -> float:
    """Return the gap between the label's logit and every other logit that minimises the loss.

    The gap is ``log((K - (K - 1) a) / a)`` for smoothing a over all classes, and
    ``log((1 - a) (K - 1) / a)`` over the wrong ones. It is infinite for a = 0.

    Args:
        num_classes: K.
        smoothing: Smoothing mass a of the cross-entropy.
        smooth_over: Which classes share the mass.

    Raises:
        ValueError: If smoothing is out of its range.
    """
    mass = uniform_mass(smoothing, num_classes, smooth_over)
    if mass == 0:
        return math.inf
    return math.log((num_classes - (num_classes - 1) * mass) / mass)


def warn_if_smoothed(labels: Tensor, smoothing: float) -> None:
    """Warn if the loss would smooth soft labels that already look smoothed.

    Soft labels look smoothed if no class has probability 0. Mixup makes such labels if K = 2, so
    there is no warning in this case.

    Args:
        labels: Classes, or distributions ``[B, K, d…]``.
        smoothing: Mass by which the loss smooths them.
    """
    if smoothing == 0 or not labels.is_floating_point():
        return
    if len(labels) == 0 or labels.shape[1] <= 2:
        return
    if bool((labels > 0).all()):
        warnings.warn(
            "These soft labels give every class some probability, so they seem to be smoothed "
            "already (timm's Mixup smooths by default); "
            f"smoothing={smoothing:g} smooths them again.",
            stacklevel=3,
        )


def per_class_tensor(
    name: str, values: Sequence[float] | Tensor | str, num_classes: int, like: Tensor
) -> Tensor:
    """Return one value per class as a tensor ``[K]`` with the device and dtype of `like`.

    Args:
        name: Name of the setting, for error messages.
        values: K numbers that are finite and not negative. Tensors are not checked, because a
            check would synchronise the device.
        num_classes: K.
        like: Tensor whose device and dtype the result gets.

    Raises:
        ValueError: If there are not K values or one is negative or not finite.
    """
    if isinstance(values, str):
        raise ValueError(
            f"{name}: '{values}' works only in a recipe, where the data are known; "
            "here, give one value per class"
        )
    if len(values) != num_classes:
        raise ValueError(
            f"{name} must have one value for each of the {num_classes} classes, got {len(values)}"
        )
    if isinstance(values, Tensor):
        return values.to(like)
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(f"all values of {name} must be finite and not negative")
    return _constants(tuple(values), like.device, like.dtype)


def prior_tensor(prior: Sequence[float] | Tensor | str, num_classes: int, like: Tensor) -> Tensor:
    """Return a distribution over the classes as a tensor ``[K]``, as `per_class_tensor` does.

    Raises:
        ValueError: If the values do not add up to 1, there are not K of them, or one is negative.
    """
    if not isinstance(prior, Tensor | str) and abs(sum(prior) - 1) > 1e-4:
        raise ValueError(f"prior must be a distribution, but its values add up to {sum(prior):g}")
    return per_class_tensor("prior", prior, num_classes, like)


@lru_cache(maxsize=64)
def _constants(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a cached constant tensor: a copy to the device in every step would stall it."""
    # Turn inference mode off: if an evaluation came first, training could not backpropagate
    # through the cached tensor.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device, dtype=dtype)
