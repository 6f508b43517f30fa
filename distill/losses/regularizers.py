"""Penalties that are added to a loss: on the student's outputs, and on its weights."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from distill.losses.tensor_ops import (
    exclude_class,
    flatten_labels,
    flatten_logits,
    to_float32,
    unflatten_loss,
)

__all__ = ["confidence_penalty", "l1_penalty", "l2_penalty", "max_sup", "mbls", "zipf"]


def confidence_penalty(logits: Tensor) -> Tensor:
    """Compute the confidence penalty, ``log K - H(p) = KL(p ‖ uniform)`` (Pereyra et al. 2017).

    Label smoothing adds the same divergence in the other direction, KL(uniform ‖ p).

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.

    Returns:
        One value per example, ``[B]`` or ``[B, d…]``, in nats, in [0, log K].
    """
    log_p = F.log_softmax(to_float32(logits), 1)
    return math.log(log_p.shape[1]) + (log_p.exp() * log_p).sum(1)


def max_sup(logits: Tensor) -> Tensor:
    """Compute the penalty of max suppression, ``max_k z_k - mean_k z_k`` (Zhou et al. 2025).

    Label smoothing a is cross-entropy plus ``a (z_y - mean_k z_k)``. Max suppression (MaxSup)
    penalises the largest logit instead of the label's. So the two differ only for misclassified
    examples.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.

    Returns:
        One value per example, ``[B]`` or ``[B, d…]``, in units of the logits.
    """
    logits = to_float32(logits)
    return logits.max(1).values - logits.mean(1)


def mbls(
    logits: Tensor,
    *,
    margin: Annotated[float, Ge(0)] = 10.0,
    over_classes: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Compute the penalty of MbLS, ``mean_k relu(max_j z_j - z_k - margin)``.

    MbLS is margin-based label smoothing, equation 9 of Liu et al. 2022. The paper sums over
    classes; the authors' code takes the mean, with a weight of 0.1.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        margin: Largest gap between logits without a penalty.
        over_classes: "mean", or "sum" (K times as large).

    Returns:
        One value per example, ``[B]`` or ``[B, d…]``, in units of the logits.

    Raises:
        ValueError: If margin is negative.
    """
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin:g}")
    logits = to_float32(logits)
    excess = F.relu(logits.max(1, keepdim=True).values - margin - logits)
    return excess.mean(1) if over_classes == "mean" else excess.sum(1)


def zipf(
    logits: Tensor,
    labels: Tensor,
    *,
    power: Annotated[float, Gt(0)] = 1.0,
    only_correct: bool = False,
) -> Tensor:
    """Compute the penalty of Zipf label smoothing, ``KL(q ‖ p of the wrong classes)``.

    The target is ``q_r ∝ r^-power`` by rank r. This is equation 5 of Liang et al. 2022 with ranks
    by the network's own logits. Their dense variant, which ranks by votes over feature maps, is
    not implemented.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]`` with K ≥ 2.
        labels: Classes ``[B, d…]``.
        power: How fast the target falls with the rank.
        only_correct: Return 0 for examples with a wrong prediction, as the authors do.

    Returns:
        One value per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If power is not positive, K < 2, or the labels are soft.
    """
    if power <= 0:
        raise ValueError(f"power must be positive, got {power:g}")
    num_wrong = logits.shape[1] - 1
    if num_wrong < 1:
        raise ValueError("Zipf label smoothing needs at least 2 classes")
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)

    target = _zipf_distribution(num_wrong, power, logits.device, logits.dtype)
    # The label's class is excluded: it is sorted behind all others and cut off.
    ranked = exclude_class(logits, classes).sort(1, descending=True).values[:, :num_wrong]
    loss = ranked.logsumexp(1) - (ranked * target).sum(1) - torch.special.entr(target).sum()

    if only_correct:
        loss = torch.where(logits.argmax(1) == classes, loss, 0)
    return unflatten_loss(loss, labels)


@lru_cache(maxsize=64)
def _zipf_distribution(
    count: int, power: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the distribution ``[count]`` that is proportional to rank^-power."""
    # Turn inference mode off: if an evaluation came first, training could not backpropagate
    # through the cached tensor.
    with torch.inference_mode(mode=False):
        share = torch.arange(1, count + 1, device=device).to(dtype) ** -power
        return share / share.sum()


def l1_penalty(weights: Sequence[Tensor]) -> Tensor:
    """Compute the L1 penalty on the weights, ``Σ |w|`` (Tibshirani 1996).

    The subgradient at 0 is 0. The penalty is a property of the weights and not of an example, so
    add it to the mean loss of a batch and not to the sum.

    Args:
        weights: Tensors of any shape, usually without biases and normalisation parameters.

    Returns:
        A scalar.

    Raises:
        ValueError: If there are no weights.
    """
    return _sum([torch.linalg.vector_norm(to_float32(weight), 1) for weight in weights])


def l2_penalty(weights: Sequence[Tensor]) -> Tensor:
    """Compute the L2 penalty on the weights, ``½ Σ w²``, with gradient w (Krogh and Hertz 1992).

    With a factor λ, it is equivalent to an optimizer's ``weight_decay=λ`` for plain SGD, but not
    for Adam. The penalty is a property of the weights and not of an example, so add it to the mean
    loss of a batch and not to the sum.

    Args:
        weights: Tensors of any shape, usually without biases and normalisation parameters.

    Returns:
        A scalar.

    Raises:
        ValueError: If there are no weights.
    """
    return _sum([to_float32(weight).square().sum() / 2 for weight in weights])


def _sum(penalties: list[Tensor]) -> Tensor:
    if not penalties:
        raise ValueError("a penalty on weights needs at least one weight")
    return torch.stack(penalties).sum()
