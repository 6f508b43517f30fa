"""Margin softmax losses: cross-entropy in which a margin first lowers the label's logit.

The margin is for training only; evaluation uses the plain logits. Some of these losses need the
scale of the logits: `logit_scale` is s for logits s·cos θ, where θ is the angle between features
and template, and 0 for logits ‖f‖ cos θ. A recipe gets such logits with
``model: {name: cosine_head, base: NAME, scale: 16}``.

With K templates that form a simplex, the gap between logits s·cos θ is at most
s (K / (K - 1) - margin), so a small scale cannot reach the optimum of a smoothed loss
(`optimal_logit_gap`).
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from distill.losses.label_smoothing import UnitInterval, uniform_mass
from distill.losses.tensor_ops import (
    flatten_labels,
    flatten_logits,
    select_class,
    to_float32,
    unflatten_loss,
)

__all__ = ["a_softmax", "am_softmax", "arcface", "l_softmax", "sm_softmax"]


def sm_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: Annotated[float, Ge(0)] = 1.0,
    smoothing: UnitInterval = 0.0,
) -> Tensor:
    """Compute the soft-margin softmax loss, in which the label's logit is ``z_y - margin``.

    This is equation 4 of Liang et al. 2017.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        margin: Margin in units of the logits; 0 is cross-entropy.
        smoothing: Label smoothing over all classes, after the margin, in [0, 1].

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If margin or smoothing is out of its range, or the labels are soft.
    """
    _check_margin(margin)
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)
    label_logit = select_class(logits, classes) - margin
    return unflatten_loss(_cross_entropy_with(logits, classes, label_logit, smoothing), labels)


def am_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    logit_scale: float | None,
    margin: Annotated[float, Ge(0)] = 0.35,
    smoothing: UnitInterval = 0.0,
) -> Tensor:
    """Compute the additive-margin softmax loss, with the label's logit ``s (cos θ_y - margin)``.

    It is known as AM-Softmax (Wang, Cheng et al. 2018) and CosFace (Wang, Wang et al. 2018).

    Args:
        logits: ``s cos θ``, ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        logit_scale: s > 0.
        margin: Margin that is subtracted from the cosine.
        smoothing: Label smoothing over all classes, after the margin, in [0, 1].

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If there is no scale, margin or smoothing is out of its range, or the labels are
            soft.
    """
    scale = _positive_scale(logit_scale)
    _check_margin(margin)
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)
    label_logit = select_class(logits, classes) - scale * margin
    return unflatten_loss(_cross_entropy_with(logits, classes, label_logit, smoothing), labels)


def arcface(
    logits: Tensor,
    labels: Tensor,
    *,
    logit_scale: float | None,
    margin: Annotated[float, Ge(0), Le(math.pi)] = 0.5,
    smoothing: UnitInterval = 0.0,
) -> Tensor:
    """Compute the ArcFace loss, in which the label's logit is ``s cos(θ_y + margin)``.

    This is equation 3 of Deng et al. 2019. Beyond θ = π - margin, its logit would rise again. There
    the logit is ``s (cos θ_y - margin sin margin)``, as in the authors' code.

    Args:
        logits: ``s cos θ``, ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        logit_scale: s > 0.
        margin: Margin that is added to the angle, in radians, in [0, π].
        smoothing: Label smoothing over all classes, after the margin, in [0, 1].

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If there is no scale, margin or smoothing is out of its range, or the labels are
            soft.
    """
    scale = _positive_scale(logit_scale)
    _check_margin(margin)
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)

    cos = (select_class(logits, classes) / scale).clamp(-1, 1)
    # The gradient of the square root is infinite at 0, where the angle is 0 or π.
    sin = (1 - cos.square()).clamp(min=1e-12).sqrt()
    cos_with_margin = cos * math.cos(margin) - sin * math.sin(margin)
    beyond = cos - margin * math.sin(margin)
    label_cos = torch.where(cos >= -math.cos(margin), cos_with_margin, beyond)
    loss = _cross_entropy_with(logits, classes, scale * label_cos, smoothing)
    return unflatten_loss(loss, labels)


def l_softmax(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    templates: Tensor,
    *,
    margin: Annotated[int, Ge(1)] = 4,
    share: UnitInterval = 1 / 6,
    ramp: UnitInterval = 0.5,
    smoothing: UnitInterval = 0.0,
    progress: float = 1.0,
    logit_scale: float | None = None,
) -> Tensor:
    """Compute the large-margin softmax loss, with the label's logit ``‖W_y‖ ‖f‖ ψ(θ_y)``.

    In Liu et al. 2016, ``ψ(θ) = (-1)^k cos(mθ) - 2k`` for θ in ``[kπ/m, (k+1)π/m]``. A bias of the
    last layer stays in the logits. The loss mixes (1 - share) of the plain logit and `share` of
    this one. The authors increase the share in this way, with share = 1 / (1 + λ) and λ falling to
    5. With a share of 1 from the start and m ≥ 2, small networks fall to chance.

    Args:
        logits: Features times templates, plus a bias, ``[B, K]``.
        labels: Classes ``[B]``.
        features: f, ``[B, D]``.
        templates: W, ``[K, D]``.
        margin: m, a whole number; 1 is cross-entropy.
        share: Share of the logit with the margin, in [0, 1].
        ramp: Share of training over which `share` grows from 0, in [0, 1].
        smoothing: Label smoothing over all classes, after the margin, in [0, 1].
        progress: Share of training that is done, in [0, 1].
        logit_scale: None or 0. A positive scale is an error, because cosine logits have no norms.

    Returns:
        One loss per example, ``[B]``, in nats.

    Raises:
        ValueError: If the logits are those of a cosine head, margin, share, ramp or smoothing is
            out of its range, or the labels are soft.
    """
    if logit_scale:
        raise ValueError("needs logits that are features · templates, not those of a cosine head")
    share = _share_at(progress, share, ramp)
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)
    features = to_float32(features)

    # The gradient of an embedding is faster than that of an index.
    label_templates = F.embedding(classes, to_float32(templates))
    norms = features.norm(dim=1) * label_templates.norm(dim=1)
    dot = (features * label_templates).sum(1)
    label_logit = select_class(logits, classes) + share * _margin_change(dot, norms, margin)
    return unflatten_loss(_cross_entropy_with(logits, classes, label_logit, smoothing), labels)


def a_softmax(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    *,
    logit_scale: float | None,
    margin: Annotated[int, Ge(1)] = 4,
    share: UnitInterval = 1 / 6,
    ramp: UnitInterval = 0.5,
    smoothing: UnitInterval = 0.0,
    progress: float = 1.0,
) -> Tensor:
    """Compute the angular softmax loss, in which the label's logit is ``‖f‖ ψ(θ_y)``.

    This is the loss of SphereFace (Liu et al. 2017): `l_softmax` with templates of norm 1 and no
    bias. See there for ψ and `share`.

    Args:
        logits: ``‖f‖ cos θ``, ``[B, K]``.
        labels: Classes ``[B]``.
        features: f, ``[B, D]``.
        logit_scale: Must be 0, which stands for logits ‖f‖ cos θ.
        margin: m, a whole number; 1 is cross-entropy.
        share: Share of the logit with the margin, in [0, 1].
        ramp: Share of training over which `share` grows from 0, in [0, 1].
        smoothing: Label smoothing over all classes, after the margin, in [0, 1].
        progress: Share of training that is done, in [0, 1].

    Returns:
        One loss per example, ``[B]``, in nats.

    Raises:
        ValueError: If the scale is not 0, margin, share, ramp or smoothing is out of its range, or
            the labels are soft.
    """
    if logit_scale != 0:
        raise ValueError(
            "needs logits that are ‖features‖ · cosine; in a recipe use model: "
            "{name: cosine_head, base: NAME, scale: 0}, in Python pass logit_scale=0"
        )
    share = _share_at(progress, share, ramp)
    logits = flatten_logits(logits)
    classes = flatten_labels(labels)

    norms = to_float32(features).norm(dim=1)
    dot = select_class(logits, classes)
    label_logit = dot + share * _margin_change(dot, norms, margin)
    return unflatten_loss(_cross_entropy_with(logits, classes, label_logit, smoothing), labels)


def _cross_entropy_with(
    logits: Tensor, classes: Tensor, label_logit: Tensor, smoothing: float
) -> Tensor:
    """Return the smoothed cross-entropy ``[N]`` after replacing each label's logit."""
    mass = uniform_mass(smoothing, logits.shape[1])
    logits = logits.scatter(1, classes[:, None], label_logit[:, None])
    return F.cross_entropy(logits, classes, label_smoothing=mass, reduction="none")


def _margin_change(dot: Tensor, norms: Tensor, margin: int) -> Tensor:
    """Return ``r (ψ(θ) - cos θ)`` for logits ``r cos θ``.

    ψ falls from 1 at θ = 0 to 1 - 2m at θ = π.

    Args:
        dot: The logits r cos θ, ``[N]``.
        norms: r ``[N]``.
        margin: m.
    """
    if margin < 1 or margin != int(margin):
        raise ValueError(f"margin must be a whole number of at least 1, got {margin:g}")
    cos = (dot / norms.clamp(min=1e-12)).clamp(-1, 1)

    # cos(mθ) as a polynomial of cos θ (Chebyshev's recurrence), whose gradient is finite at θ = 0
    # and π, unlike that of the arc cosine.
    previous = torch.ones_like(cos)
    cos_m = cos
    for _ in range(int(margin) - 1):
        following = 2 * cos * cos_m - previous
        previous = cos_m
        cos_m = following

    k = (margin * cos.detach().acos() / math.pi).floor().clamp(max=margin - 1)
    sign = 1 - 2 * (k % 2)
    return norms * (sign * cos_m - 2 * k - cos)


def _share_at(progress: float, share: float, ramp: float) -> float:
    """Return the share at this point of training; it grows linearly from 0 over the ramp."""
    if not 0 <= share <= 1 or not 0 <= ramp <= 1:
        raise ValueError(f"share and ramp must be in [0, 1], got {share:g} and {ramp:g}")
    if ramp == 0:
        return share
    return share * min(1.0, progress / ramp)


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be at least 0 and finite, got {margin:g}")


def _positive_scale(logit_scale: float | None) -> float:
    if not logit_scale:
        raise ValueError(
            "needs logits that are scale · cosine; in a recipe use model: {name: cosine_head, "
            "base: NAME, scale: 16}, in Python pass logit_scale=16"
        )
    return logit_scale
