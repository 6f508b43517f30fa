"""Penalties on the weights, as terms of a loss. Biases and norms are left alone.

A penalty is the same for every example, so it is meant for the mean over a batch, not for the sum.

An optimizer's `weight_decay` w is ``l2_penalty: {weight: w}`` under plain SGD, and something else under Adam.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.losses.common import Outputs, to_float32


def l1_penalty(student: Outputs, labels: Tensor, teacher: Outputs | None = None) -> Tensor:
    """``Σ |w|`` over the weights, the same for every example; the subgradient at 0 is 0.

    Args:
        student: weights.
        labels: only their shape counts.
        teacher: not used.

    Returns:
        ``[B]``, all equal.

    Raises:
        ValueError: if there are no weights.
    """
    return _each([torch.linalg.vector_norm(to_float32(w), 1) for w in _weights(student)], labels)


def l2_penalty(student: Outputs, labels: Tensor, teacher: Outputs | None = None) -> Tensor:
    """``½ Σ w²`` over the weights, the same for every example; its gradient is w.

    Args:
        student: weights.
        labels: only their shape counts.
        teacher: not used.

    Returns:
        ``[B]``, all equal.

    Raises:
        ValueError: if there are no weights.
    """
    return _each([to_float32(w).square().sum() / 2 for w in _weights(student)], labels)


def _weights(student: Outputs) -> Sequence[Tensor]:
    if not student.weights:
        raise ValueError("a penalty on weights needs Outputs with weights")
    return student.weights


def _each(sums: list[Tensor], labels: Tensor) -> Tensor:
    shape = labels.shape[:1] + labels.shape[2:] if labels.is_floating_point() else labels.shape
    return torch.stack(sums).sum().expand(shape)
