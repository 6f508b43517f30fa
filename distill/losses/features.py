"""Losses on a teacher's inside: its penultimate features and its feature maps.

An ensemble of teachers has none, so these terms learn from one teacher.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.common import Outputs, to_float32
from distill.losses.distillation import Factor


def hint(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    part: nn.Module,
    over_features: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """FitNets' hint on the penultimate layer, ``½ mean_d (r(f_s) - f_t)²`` (Romero et al. 2015, equation 3).

    Args:
        student: features ``[B, D_s]``.
        labels: not used.
        teacher: features ``[B, D_t]``.
        part: r, the projector from D_s to D_t that is trained with the student, and not kept.
        over_features: mean, or the paper's sum (D_t times it).

    Returns:
        ``[B]``, in squared features.

    Raises:
        ValueError: if a side has no features.
    """
    ours, theirs = _features(student, teacher)
    with torch.autocast(ours.device.type, enabled=False):
        squares = (part(ours) - theirs).square()
    return 0.5 * (squares.mean(1) if over_features == "mean" else squares.sum(1))


def attention_transfer(student: Outputs, labels: Tensor, teacher: Outputs) -> Tensor:
    """Attention transfer, ``Σ_stages mean_positions (A_s - A_t)²`` (Zagoruyko and Komodakis 2017, section 3.1).

    A is the mean over channels of the squared feature map, as a vector of length 1. Stages pair from the last
    one; of maps of unequal size the larger is pooled. The mean over positions is that of the authors' code,
    with a weight of 1000 on 32×32 images.

    Args:
        student: maps, each ``[B, C, H, W]``.
        labels: not used.
        teacher: feature maps.

    Returns:
        ``[B]``, of the order of 1 over the number of positions.

    Raises:
        ValueError: if a side has no feature maps.
    """
    if not student.feature_maps or not teacher.feature_maps:
        raise ValueError("attention transfer needs feature maps, of the student and of one teacher")
    losses = []
    for ours, theirs in zip(
        reversed(student.feature_maps), reversed(teacher.feature_maps), strict=False
    ):
        size = [min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
        losses.append((_attention(ours, size) - _attention(theirs.detach(), size)).square().mean(1))
    return torch.stack(losses).sum(0)


def rkd(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    distance_weight: Factor = 1.0,
    angle_weight: Factor = 2.0,
) -> Tensor:
    """Relational distillation: distances and angles among the examples of a batch (Park et al. 2019, section 3.2).

    Huber losses of all distances ``|f_i - f_j|``, over their mean, and of the cosines of all angles at i between
    j and k. The angles take B³ numbers. The loss depends on the batch (with several processes or
    `accumulate`, on its part). The authors use weights of 25 and 50 for classification.

    Args:
        student: features ``[B, D_s]``.
        labels: not used.
        teacher: features ``[B, D_t]``.
        distance_weight: of the distances.
        angle_weight: of the angles.

    Returns:
        ``[B]``: the part of the sums that belongs to example i, so that their mean is the loss of the paper's code.

    Raises:
        ValueError: if a side has no features.
    """
    ours, theirs = _features(student, teacher)
    loss = ours.new_zeros(len(ours))
    with torch.autocast(ours.device.type, enabled=False):
        if distance_weight:
            loss = loss + distance_weight * F.smooth_l1_loss(
                _distances(ours), _distances(theirs), reduction="none"
            ).mean(1)
        if angle_weight:
            loss = loss + angle_weight * F.smooth_l1_loss(
                _angles(ours), _angles(theirs), reduction="none"
            ).mean((1, 2))
    return loss


def _features(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    if student.features is None or teacher.features is None:
        raise ValueError("this term needs features, of the student and of one teacher")
    return to_float32(student.features), to_float32(teacher.features.detach())


def _attention(feature_maps: Tensor, size: Sequence[int]) -> Tensor:
    feature_maps = to_float32(feature_maps)
    largest = feature_maps.detach().abs().amax((1, 2, 3), keepdim=True)
    energy = (
        (feature_maps / largest.clamp(min=1e-30)).square().mean(1, keepdim=True)
    )  # squares of large ones might overflow
    return F.normalize(F.adaptive_avg_pool2d(energy, size).flatten(1), dim=1)


def _distances(features: Tensor) -> Tensor:
    """``[B, B]``, over the mean distance of two different examples."""
    squares = (features[:, None] - features[None]).square().sum(2)
    distances = torch.where(
        squares > 0, squares.clamp(min=1e-30).sqrt(), 0
    )  # its gradient at 0 is infinite
    count = len(features) * (len(features) - 1)
    return distances * (count / distances.sum().clamp(min=1e-30)) if count else distances


def _angles(features: Tensor) -> Tensor:
    """``[B, B, B]``: at i, the cosine between the directions to j and to k; 0 where one of them lies on i."""
    steps = features[None] - features[:, None]
    squares = steps.square().sum(2, keepdim=True)
    directions = torch.where(squares > 0, steps * squares.clamp(min=1e-30).rsqrt(), 0)
    return directions @ directions.transpose(1, 2)
