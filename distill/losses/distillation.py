"""Losses on a teacher's answers.

The form is that of `distill.losses.common`; here `teacher` has no default, which is how a recipe knows
that the term needs one. No gradient reaches the teacher.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from distill.losses.common import (
    Outputs,
    exclude_class,
    mask_ignored,
    rows,
    select_class,
    split_class,
    to_float32,
)

Temperature = Annotated[float, Gt(0)]
Factor = Annotated[float, Ge(0)]


def kd(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    temperature: Temperature = 4.0,
    student_temperature: Temperature | None = None,
    final_temperature: Temperature | None = None,
    standardise: bool = False,
    t_squared: bool = True,
    progress: float | None = None,
) -> Tensor:
    """Knowledge distillation, ``S² KL(p_t(T) ‖ p_s(S))`` (Hinton et al. 2015, section 2).

    By default both sides share the temperature, S = T, and the factor is Hinton's T², which holds the
    gradient's scale as T grows. With ``student_temperature: 1`` only the teacher is softened and the
    factor is 1: the setting of Müller et al. 2019, section 4. KL and cross-entropy with the teacher's
    distribution have the same gradient; KL is 0 where the student agrees.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters; may be None.
        teacher: logits of the same shape.
        temperature: T > 0, of the teacher.
        student_temperature: S > 0; T by default.
        final_temperature: T goes from `temperature` to this, linearly over training.
        standardise: each example's logits first get mean 0 and standard deviation 1 (Sun et al. 2024), so
            that the student need not match their size; the authors use T = 2 and a weight of 9. A deviation
            below 0.01 counts as 0.01: that of a network that starts with equal logits would give it gradients
            without bound.
        t_squared: whether S² multiplies the divergence; without it the gradient falls as 1/T² when both soften.
        progress: share of training that is done, in [0, 1]; a recipe knows it.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats times S².

    Raises:
        ValueError: if a temperature is not positive, the shapes differ, K < 2 with `standardise`, or there is a
            final temperature without progress.
    """
    if final_temperature is not None:
        if progress is None:
            raise ValueError(
                "final_temperature needs progress, the share of training that is done, in [0, 1]"
            )
        temperature = temperature + (final_temperature - temperature) * progress
    own = temperature if student_temperature is None else student_temperature
    _positive(temperature, own, final_temperature or 1.0)
    ours, theirs = _both(student, teacher)
    if standardise:
        ours, theirs = _standardised(ours), _standardised(theirs)
    log_p = F.log_softmax(ours / own, dim=1)
    log_q = F.log_softmax(theirs / temperature, dim=1)
    loss = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1) * (
        own**2 if t_squared else 1.0
    )
    return mask_ignored(loss, labels)


def logit_mse(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    over_classes: Literal["sum", "mean"] = "sum",
    centre: bool = False,
) -> Tensor:
    """Half the squared distance of the logits, ``½ Σ_k (z_s - z_t)²`` (Ba and Caruana 2014; Müller et al.
    2019, appendix A.5, "equivalent to picking a high temperature").

    The paper does not say whether the classes are summed or averaged; `over_classes` does.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters; may be None.
        teacher: logits of the same shape.
        over_classes: sum, or mean (1/K of it).
        centre: subtract each side's mean logit first; without it a shift of the logits costs, unlike in kd.

    Returns:
        ``[B]`` or ``[B, d…]``, in squared logits.

    Raises:
        ValueError: if the shapes differ.
    """
    ours, theirs = _both(student, teacher)
    difference = ours - theirs
    if centre:
        difference = difference - difference.mean(1, keepdim=True)
    squares = difference.square()
    return mask_ignored(
        0.5 * (squares.sum(1) if over_classes == "sum" else squares.mean(1)), labels
    )


def hard_label(student: Outputs, labels: Tensor, teacher: Outputs) -> Tensor:
    """Cross-entropy with the class that the teacher answers (Touvron et al. 2021, DeiT's hard distillation).

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: only `IGNORED` matters; may be None.
        teacher: logits of the same shape; of equal largest ones, the first counts.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if the shapes differ.
    """
    ours, theirs = _both(student, teacher)
    return mask_ignored(F.cross_entropy(ours, theirs.argmax(1), reduction="none"), labels)


def dkd(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    temperature: Temperature = 4.0,
    target_weight: Factor = 1.0,
    others_weight: Factor = 8.0,
) -> Tensor:
    """Decoupled distillation, ``T² (target_weight TCKD + others_weight NCKD)`` (Zhao et al. 2022, equation 7).

    TCKD is the divergence of (p_y, 1 - p_y), NCKD that of the other classes among themselves; kd is the same
    sum with the weights 1 and 1 - p_t[y]. The authors' code lets the term grow over the first 20 of 240
    epochs: ``warmup: 0.083``.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``, K ≥ 2.
        labels: classes.
        teacher: logits of the same shape.
        temperature: T > 0, of both.
        target_weight: of TCKD.
        others_weight: of NCKD.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats times T².

    Raises:
        ValueError: if the temperature is not positive, the shapes differ, or the labels are soft.
    """
    _positive(temperature)
    ours, theirs = _both(student, teacher)
    ours, classes, finish = rows(ours / temperature, labels)
    theirs = rows(theirs / temperature, labels)[0]
    own_s, rest_s, others_s = split_class(ours, classes)
    own_t, rest_t, others_t = split_class(theirs, classes)
    target = own_t.exp() * (own_t - own_s) + rest_t.exp() * (rest_t - rest_s)
    others = F.kl_div(others_s, others_t, log_target=True, reduction="none").sum(1)
    return finish(temperature**2 * (target_weight * target + others_weight * others))


def nkd(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    temperature: Temperature = 1.0,
    others_weight: Factor = 1.5,
) -> Tensor:
    """Normalised distillation, ``-p_t[y] log p_s[y] - others_weight T² Σ_{j≠y} N(p_t)_j log N(p_s)_j`` (Yang
    et al. 2023, equation 9), N being the other classes' probabilities at T, normalised among themselves.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``, K ≥ 2.
        labels: classes.
        teacher: logits of the same shape.
        temperature: T > 0, of the second part alone.
        others_weight: of the second part.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats (the second part times T²).

    Raises:
        ValueError: if the temperature is not positive, the shapes differ, or the labels are soft.
    """
    _positive(temperature)
    ours, theirs = _both(student, teacher)
    ours, classes, finish = rows(ours, labels)
    theirs = rows(theirs, labels)[0]
    target = select_class(theirs, classes).sub(theirs.logsumexp(1)).exp() * F.cross_entropy(
        ours, classes, reduction="none"
    )
    others_s = F.log_softmax(exclude_class(ours, classes) / temperature, 1)
    others_t = F.softmax(exclude_class(theirs, classes) / temperature, 1)
    return finish(target - others_weight * temperature**2 * (others_t * others_s).sum(1))


def dist(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    temperature: Temperature = 1.0,
    inter_weight: Factor = 1.0,
    intra_weight: Factor = 1.0,
) -> Tensor:
    """Distillation by correlation, ``T² (inter_weight inter + intra_weight intra)`` (Huang et al. 2022, DIST).

    inter is 1 - Pearson's correlation of an example's probabilities over the classes; intra, the same of each
    class over the examples of the batch, is shared by all of them. So the loss depends on the batch (with
    several processes or `accumulate`, on its part), and one example alone has no intra.

    Args:
        student: logits ``[B, K]``.
        labels: not used.
        teacher: logits ``[B, K]``.
        temperature: T > 0, of both.
        inter_weight: of an example's correlation.
        intra_weight: of the classes' correlations.

    Returns:
        ``[B]``, correlations times T², each part in [0, 2].

    Raises:
        ValueError: if the temperature is not positive or the shapes differ.
    """
    _positive(temperature)
    if student.logits.ndim != 2:
        raise ValueError(f"dist is for logits [B, K], got {list(student.logits.shape)}")
    ours, theirs = (F.softmax(z / temperature, 1) for z in _both(student, teacher))
    inter = 1 - _pearson(ours, theirs, 1)
    intra = 1 - _pearson(ours, theirs, 0).mean() if len(ours) > 1 else torch.zeros_like(inter[:1])
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def ensemble(teachers: Sequence[Outputs]) -> Outputs:
    """Several teachers as one: the logarithm of their mean probability at temperature 1.

    A temperature of the loss then softens this one distribution. Features and maps are those of a single
    teacher, so an ensemble has none.
    """
    if len(teachers) == 1:
        return teachers[0]
    log_p = torch.stack([F.log_softmax(to_float32(t.logits), 1) for t in teachers])
    return Outputs(log_p.logsumexp(0) - math.log(len(teachers)))


def _both(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    if student.logits.shape != teacher.logits.shape:
        shapes = f"{list(student.logits.shape)} and {list(teacher.logits.shape)}"
        raise ValueError(f"student and teacher must have logits of one shape, got {shapes}")
    return to_float32(student.logits), to_float32(teacher.logits.detach())


def _positive(*temperatures: float) -> None:
    if not all(0 < t < math.inf for t in temperatures):
        raise ValueError(
            f"temperatures must be positive, got {' and '.join(f'{t:g}' for t in temperatures)}"
        )


def _standardised(logits: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise ValueError(
            "standardised logits need at least 2 classes: they must have a standard deviation"
        )
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (logits.shape[1] - 1)
    return centred / variance.clamp(min=1e-4).sqrt()


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Correlation along a dimension; a deviation shorter than 1e-8 counts as 1e-8, as in the authors' code."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return F.cosine_similarity(a, b, dim=dim, eps=1e-8)
