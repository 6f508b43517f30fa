"""Margin softmax: cross-entropy in which the label's logit is first made smaller.

The margin is for training alone; evaluation sees the plain logits. AM-Softmax and ArcFace need logits that
are s·cos(angle): those of a cosine head, in a recipe ``model: {name: cosine_head, base: NAME, scale: 16}``,
elsewhere ``Outputs(logits, logit_scale=s)``; A-Softmax needs such a head of scale 0, whose logits are ‖f‖·cos.

On a simplex the gap of s·cos logits is at most s (K / (K - 1) - margin): a small scale cannot reach the
optimum of a smoothed loss (`optimal_logit_gap`).
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from distill.losses.common import Outputs, rows, select_class, to_float32
from distill.losses.labels import Mass, uniform_mass


def sm_softmax(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[float, Ge(0)] = 1.0,
    smoothing: Mass = 0.0,
) -> Tensor:
    """Soft-margin softmax: the label's logit is ``z_y - margin`` (Liang et al. 2017, equation 4).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes.
        teacher: not used.
        margin: in logits; 0 is cross-entropy.
        smoothing: over all classes, of the loss after the margin.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if margin or smoothing is out of its range, or the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    return finish(
        _with_own(logits, classes, select_class(logits, classes) - _checked(margin), smoothing)
    )


def am_softmax(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[float, Ge(0)] = 0.35,
    smoothing: Mass = 0.0,
) -> Tensor:
    """Additive margin, ``s (cos θ_y - margin)`` (Wang et al. 2018, AM-Softmax; Wang et al. 2018, CosFace).

    Args:
        student: logits ``s cos θ`` ``[B, K]``, and their scale s.
        labels: classes.
        teacher: not used.
        margin: of the cosine.
        smoothing: over all classes, of the loss after the margin.

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if there is no scale, margin or smoothing is out of its range, or the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    own = select_class(logits, classes) - _scale(student) * _checked(margin)
    return finish(_with_own(logits, classes, own, smoothing))


def arcface(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[float, Ge(0), Le(math.pi)] = 0.5,
    smoothing: Mass = 0.0,
) -> Tensor:
    """Additive angular margin, ``s cos(θ_y + margin)`` (Deng et al. 2019, equation 3).

    Beyond θ = π - margin, where that would rise again, ``s (cos θ - margin sin margin)``, as in the authors' code.

    Args:
        student: logits ``s cos θ`` ``[B, K]``, and their scale s.
        labels: classes.
        teacher: not used.
        margin: in radians.
        smoothing: over all classes, of the loss after the margin.

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if there is no scale, margin or smoothing is out of its range, or the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    scale, margin = _scale(student), _checked(margin)
    cos = (select_class(logits, classes) / scale).clamp(-1, 1)
    sin = (
        (1 - cos.square()).clamp(min=1e-12).sqrt()
    )  # its gradient is infinite where an angle is 0 or π
    turned = cos * math.cos(margin) - sin * math.sin(margin)
    own = torch.where(cos >= -math.cos(margin), turned, cos - margin * math.sin(margin))
    return finish(_with_own(logits, classes, scale * own, smoothing))


def l_softmax(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[int, Ge(1)] = 4,
    share: Mass = 1 / 6,
    ramp: Mass = 0.5,
    smoothing: Mass = 0.0,
    progress: float = 1.0,
) -> Tensor:
    """Large margin, ``‖W_y‖ ‖f‖ ψ(θ_y)``, ``ψ = (-1)^k cos(mθ) - 2k`` on ``[kπ/m, (k+1)π/m]`` (Liu et al. 2016).

    A bias of the last layer stays in the logits. The logit is (1 - share) of what it was and `share` of this, as
    the authors anneal it with share = 1 / (1 + λ) up to λ = 5: with a share of 1 from the start and m ≥ 2, small
    networks fall to chance.

    Args:
        student: logits ``[B, K]``, features ``[B, D]`` and templates ``[K, D]``.
        labels: classes.
        teacher: not used.
        margin: m, a whole number; 1 is cross-entropy.
        share: of the margin's logit, in [0, 1].
        ramp: share of training over which `share` grows from 0.
        smoothing: over all classes, of the loss after the margin.
        progress: share of training that is done, in [0, 1].

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if features or templates are missing, margin or smoothing is out of its range, or the
            labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    if student.logit_scale:
        raise ValueError(
            "this term needs logits that are features · templates, not those of a cosine head"
        )
    if student.features is None or student.templates is None:
        raise ValueError("this term needs Outputs with features and templates")
    features, templates = to_float32(student.features), to_float32(student.templates)
    theirs = F.embedding(classes, templates)  # whose gradient is faster than an index's
    radius, dot = features.norm(dim=1) * theirs.norm(dim=1), (features * theirs).sum(1)
    own = select_class(logits, classes) + _grown(share, ramp, progress) * _widening(
        dot, radius, margin
    )
    return finish(_with_own(logits, classes, own, smoothing))


def a_softmax(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    margin: Annotated[int, Ge(1)] = 4,
    share: Mass = 1 / 6,
    ramp: Mass = 0.5,
    smoothing: Mass = 0.0,
    progress: float = 1.0,
) -> Tensor:
    """Angular softmax, ``‖f‖ ψ(θ_y)`` with templates of norm 1 and no bias (Liu et al. 2017, SphereFace).

    ψ and its share as in `l_softmax`.

    Args:
        student: logits ``‖f‖ cos θ`` ``[B, K]``, features ``[B, D]``, and a scale of 0.
        labels: classes.
        teacher: not used.
        margin: m, a whole number; 1 is cross-entropy.
        share: of the margin's logit, in [0, 1].
        ramp: share of training over which `share` grows from 0.
        smoothing: over all classes, of the loss after the margin.
        progress: share of training that is done, in [0, 1].

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if the features are missing or the scale is not 0, margin or smoothing is out of its range,
            or the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    if student.features is None or student.logit_scale != 0:
        raise ValueError(
            "this term needs features, and logits that are their length · cosine: in a recipe, model: "
            "{name: cosine_head, base: NAME, scale: 0}; else Outputs(logits, features, logit_scale=0)"
        )
    radius, own = to_float32(student.features).norm(dim=1), select_class(logits, classes)
    own = own + _grown(share, ramp, progress) * _widening(own, radius, margin)
    return finish(_with_own(logits, classes, own, smoothing))


def _with_own(logits: Tensor, classes: Tensor, own: Tensor, smoothing: float) -> Tensor:
    """Smoothed cross-entropy ``[N]`` of logits ``[N, K]`` whose label has the logit `own` ``[N]`` instead."""
    mass = uniform_mass(smoothing, logits.shape[1])
    logits = logits.scatter(1, classes[:, None], own[:, None])
    return F.cross_entropy(logits, classes, label_smoothing=mass, reduction="none")


def _widening(dot: Tensor, radius: Tensor, margin: int) -> Tensor:
    """``r (ψ(θ) - cos θ)`` where a logit is ``r cos θ``; ψ falls from 1 at θ = 0 to 1 - 2m at π."""
    if margin < 1 or margin != int(margin):
        raise ValueError(f"margin must be a whole number from 1, got {margin:g}")
    cos = (dot / radius.clamp(min=1e-12)).clamp(-1, 1)
    before, turned = torch.ones_like(cos), cos
    for _ in range(
        int(margin) - 1
    ):  # cos(mθ) as a polynomial of cos θ, which has a gradient at θ = 0 and π
        before, turned = turned, 2 * cos * turned - before
    k = (margin * cos.detach().acos() / math.pi).floor().clamp(max=margin - 1)
    return radius * ((1 - 2 * (k % 2)) * turned - 2 * k - cos)


def _grown(share: float, ramp: float, progress: float) -> float:
    """A share that grows linearly from 0 over the first `ramp` of training."""
    if not 0 <= share <= 1 or not 0 <= ramp <= 1:
        raise ValueError(f"share and ramp must be in [0, 1], got {share:g} and {ramp:g}")
    return share * min(1.0, progress / ramp) if ramp else share


def _checked(margin: float) -> float:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be at least 0, got {margin:g}")
    return margin


def _scale(student: Outputs) -> float:
    if not student.logit_scale:
        raise ValueError(
            "this term needs logits that are scale · cosine: in a recipe, model: {name: cosine_head, "
            "base: NAME, scale: 16}; else Outputs(logits, logit_scale=…)"
        )
    return student.logit_scale
