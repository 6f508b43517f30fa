"""Knowledge distillation from a teacher's penultimate features and feature maps.

No gradient reaches the teacher. An ensemble of teachers has neither features nor feature maps, so
these losses need a single teacher.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.logit_distillation import NonNegative
from distill.losses.tensor_ops import to_float32

__all__ = ["attention_transfer", "hint", "rkd"]


def hint(
    features: Tensor,
    teacher_features: Tensor,
    *,
    projector: nn.Module,
    over_features: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Compute the hint loss of FitNets, ``½ mean_d (r(f_s) - f_t)²`` (Romero et al. 2015).

    Here the hint layer is the penultimate one. Equation 3 of the paper sums over the features d
    instead of taking the mean.

    Args:
        features: ``[B, D_s]``.
        teacher_features: ``[B, D_t]``.
        projector: r, a module from D_s to D_t features, such as ``nn.Linear(D_s, D_t)``. It is
            trained with the student and not needed after training.
        over_features: "mean", or the paper's "sum" (D_t times as large).

    Returns:
        One loss per example, ``[B]``, in squared units of the features.
    """
    features = to_float32(features)
    teacher_features = to_float32(teacher_features.detach())
    with torch.autocast(features.device.type, enabled=False):
        squares = (projector(features) - teacher_features).square()
    return 0.5 * (squares.mean(1) if over_features == "mean" else squares.sum(1))


def attention_transfer(
    feature_maps: Sequence[Tensor], teacher_feature_maps: Sequence[Tensor]
) -> Tensor:
    """Compute the attention transfer loss, ``Σ_stages mean_positions (A_s - A_t)²``.

    In section 3.1 of Zagoruyko and Komodakis 2017, A is the mean over channels of the squared
    feature map, as a vector of length 1 over the positions. The authors' code takes the mean over
    positions, with a weight of 1000 on 32×32 images.

    Args:
        feature_maps: Output of each stage, ``[B, C, H, W]``; at least one.
        teacher_feature_maps: Output of each stage of the teacher. Stages are paired from the last
            one, and the first stages of the deeper network are not used. If the sizes of a pair
            differ, the larger map is pooled.

    Returns:
        One loss per example, ``[B]``, of the order of 1 / (number of positions).

    Raises:
        ValueError: If one side has no feature maps.
    """
    if not feature_maps or not teacher_feature_maps:
        raise ValueError("attention transfer needs feature maps of the student and of the teacher")
    losses = []
    pairs = zip(reversed(feature_maps), reversed(teacher_feature_maps), strict=False)
    for ours, theirs in pairs:
        size = [min(a, b) for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True)]
        difference = _attention(ours, size) - _attention(theirs.detach(), size)
        losses.append(difference.square().mean(1))
    return torch.stack(losses).sum(0)


def rkd(
    features: Tensor,
    teacher_features: Tensor,
    *,
    distance_weight: NonNegative = 1.0,
    angle_weight: NonNegative = 2.0,
) -> Tensor:
    """Compute the relational distillation loss of distances and angles (RKD; Park et al. 2019).

    In section 3.2, the loss is ``a mean_ij h(d_ij) + b mean_ijk h(c_ijk)``. h is the Huber loss
    between student and teacher. d_ij is the distance ‖f_i - f_j‖ divided by its mean in the batch,
    and c_ijk the cosine of the angle at i between j and k. The loss compares the examples of a
    batch. With several processes or gradient accumulation, it compares them only within each part
    of the batch. The angles need memory for B³ numbers.

    Args:
        features: ``[B, D_s]``.
        teacher_features: ``[B, D_t]``.
        distance_weight: a; the authors use 25 for classification.
        angle_weight: b; the authors use 50 for classification.

    Returns:
        One loss per example, ``[B]``: example i gets the part of the means that belongs to it, so
        the mean over the batch is the loss of the authors' code.
    """
    features = to_float32(features)
    teacher_features = to_float32(teacher_features.detach())
    loss = features.new_zeros(len(features))
    with torch.autocast(features.device.type, enabled=False):
        if distance_weight:
            distance_loss = F.smooth_l1_loss(
                _distances(features), _distances(teacher_features), reduction="none"
            )
            loss = loss + distance_weight * distance_loss.mean(1)
        if angle_weight:
            angle_loss = F.smooth_l1_loss(
                _angle_cosines(features), _angle_cosines(teacher_features), reduction="none"
            )
            loss = loss + angle_weight * angle_loss.mean((1, 2))
    return loss


def _attention(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Return the attention maps ``[B, h·w]``, pooled to a size (h, w), as unit vectors."""
    feature_map = to_float32(feature_map)
    # This scale cancels in the normalisation; without it, squares of large values overflow.
    largest = feature_map.detach().abs().amax((1, 2, 3), keepdim=True)
    energy = (feature_map / largest.clamp(min=1e-30)).square().mean(1, keepdim=True)
    return F.normalize(F.adaptive_avg_pool2d(energy, size).flatten(1), dim=1)


def _distances(features: Tensor) -> Tensor:
    """Return all distances ``[B, B]``, divided by the mean over pairs of different examples."""
    squares = (features[:, None] - features[None]).square().sum(2)
    # The gradient of a square root is infinite at 0: on the diagonal, and for equal examples.
    distances = torch.where(squares > 0, squares.clamp(min=1e-30).sqrt(), 0)
    num_pairs = len(features) * (len(features) - 1)
    if num_pairs == 0:
        return distances
    return distances * (num_pairs / distances.sum().clamp(min=1e-30))


def _angle_cosines(features: Tensor) -> Tensor:
    """Return the cosine at i of the angle between j and k, ``[B, B, B]``.

    It is 0 where j or k has the same features as i.
    """
    steps = features[None] - features[:, None]
    squares = steps.square().sum(2, keepdim=True)
    directions = torch.where(squares > 0, steps * squares.clamp(min=1e-30).rsqrt(), 0)
    return directions @ directions.transpose(1, 2)
