"""Knowledge distillation from a teacher's logits.

No gradient reaches the teacher. Losses that read no labels return a value for every example. To
leave examples out, mask their values, or use `compute_loss` or `Criterion`.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from distill.losses.tensor_ops import (
    exclude_class,
    flatten_labels,
    flatten_logits,
    select_class,
    split_class,
    to_float32,
    unflatten_loss,
)

__all__ = ["dist", "dkd", "hard_label", "kd", "logit_mse", "nkd"]

Temperature = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]

# How far the logit of a masked class is below the largest. Of a larger gap, differences of logits
# would lose digits.
MASKED_GAP = 1e4


def kd(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 4.0,
    student_temperature: Temperature | None = None,
    final_temperature: Temperature | None = None,
    standardise: bool = False,
    t_squared: bool = True,
    progress: float | None = None,
) -> Tensor:
    """Compute the distillation loss ``S² KL(p_t(T) ‖ p_s(S))`` (Hinton et al. 2015, section 2).

    By default, student and teacher share the temperature, S = T. Then the factor is Hinton's T²,
    which keeps the size of the gradient as T grows. With ``student_temperature=1``, only the
    teacher is softened and the factor is 1, as in Müller et al. 2019, section 4. KL and
    cross-entropy with the teacher's distribution have the same gradient; KL is 0 where the student
    agrees with the teacher.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        teacher_logits: In the same shape.
        temperature: T > 0, the teacher's temperature.
        student_temperature: S > 0; T by default.
        final_temperature: T changes linearly from `temperature` to this over training.
        standardise: First shift and scale each example's logits to mean 0 and standard deviation 1
            (Sun et al. 2024), so that the student need not match the scale of the teacher's logits.
            The authors use T = 2 and a weight of 9. A standard deviation below 0.01 counts as 0.01.
            Otherwise a network that starts with equal logits would get unbounded gradients.
        t_squared: Whether to multiply by S². Without it, the gradient falls as 1/T² if T softens
            both networks.
        progress: Share of training that is done, in [0, 1], for `final_temperature`.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats times S².

    Raises:
        ValueError: If a temperature is not positive, the shapes differ, K < 2 with `standardise`,
            or `final_temperature` is given without `progress`.
    """
    if final_temperature is not None:
        if progress is None:
            raise ValueError(
                "final_temperature needs progress, the share of training that is done, in [0, 1]"
            )
        _check_temperature(final_temperature)
        temperature = temperature + (final_temperature - temperature) * progress
    if student_temperature is None:
        student_temperature = temperature
    _check_temperature(temperature)
    _check_temperature(student_temperature)

    logits, teacher_logits = _prepare(logits, teacher_logits)
    if standardise:
        logits = _standardise(logits)
        teacher_logits = _standardise(teacher_logits)
    log_p = F.log_softmax(logits / student_temperature, dim=1)
    teacher_log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    loss = F.kl_div(log_p, teacher_log_p, log_target=True, reduction="none").sum(1)
    return loss * student_temperature**2 if t_squared else loss


def logit_mse(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    over_classes: Literal["sum", "mean"] = "sum",
    centre: bool = False,
) -> Tensor:
    """Compute half the squared distance of logits, ``½ Σ_k (z_s - z_t)²`` (Ba and Caruana 2014).

    Müller et al. 2019, appendix A.5, call it "equivalent to picking a high temperature"; they do
    not say whether they sum or average over classes.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        teacher_logits: In the same shape.
        over_classes: "sum", or "mean" (1/K of it).
        centre: Subtract the mean logit of each example from both sides first. Without it, a
            constant added to all logits changes the loss, unlike in `kd`.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in squared logits.

    Raises:
        ValueError: If the shapes differ.
    """
    logits, teacher_logits = _prepare(logits, teacher_logits)
    difference = logits - teacher_logits
    if centre:
        difference = difference - difference.mean(1, keepdim=True)
    squares = difference.square()
    return 0.5 * (squares.sum(1) if over_classes == "sum" else squares.mean(1))


def hard_label(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the cross-entropy with the teacher's prediction, ``-log p_s[argmax z_t]``.

    This is the hard distillation of Touvron et al. 2021 (DeiT), without its distillation token.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        teacher_logits: In the same shape. If several logits are largest, the first one counts.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If the shapes differ.
    """
    logits, teacher_logits = _prepare(logits, teacher_logits)
    return F.cross_entropy(logits, teacher_logits.argmax(1), reduction="none")


def dkd(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 4.0,
    target_weight: NonNegative = 1.0,
    others_weight: NonNegative = 8.0,
) -> Tensor:
    """Compute the decoupled distillation loss, ``T² (target_weight TCKD + others_weight NCKD)``.

    In equation 7 of Zhao et al. 2022, TCKD is the divergence between the teacher's and the
    student's (p_y, 1 - p_y). NCKD is the divergence between their distributions over the other
    classes. `kd` is the same sum with the weights 1 and 1 - p_t[y]. In the authors' code, the
    weight of the term grows over the first 20 of 240 epochs, a `warmup` of 0.083.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]`` with K ≥ 2.
        labels: Classes ``[B, d…]``.
        teacher_logits: In the shape of the logits.
        temperature: T > 0, of student and teacher.
        target_weight: Factor of TCKD.
        others_weight: Factor of NCKD.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats times T².

    Raises:
        ValueError: If the temperature is not positive, the shapes differ, or the labels are soft.
    """
    _check_temperature(temperature)
    logits, teacher_logits = _prepare(logits, teacher_logits)
    classes = flatten_labels(labels)
    log_p, log_rest, others = split_class(flatten_logits(logits / temperature), classes)
    teacher_log_p, teacher_log_rest, teacher_others = split_class(
        flatten_logits(teacher_logits / temperature), classes
    )

    target_kl = teacher_log_p.exp() * (teacher_log_p - log_p)
    target_kl = target_kl + teacher_log_rest.exp() * (teacher_log_rest - log_rest)
    others_kl = F.kl_div(others, teacher_others, log_target=True, reduction="none").sum(1)
    loss = temperature**2 * (target_weight * target_kl + others_weight * others_kl)
    return unflatten_loss(loss, labels)


def nkd(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    others_weight: NonNegative = 1.5,
) -> Tensor:
    """Compute the normalised distillation loss (NKD), equation 9 of Yang et al. 2023.

    The loss is ``-p_t[y] log p_s[y] - w T² Σ_{j≠y} N(p_t)_j log N(p_s)_j``. N are the
    probabilities of the wrong classes at temperature T, normalised to add up to 1.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]`` with K ≥ 2.
        labels: Classes ``[B, d…]``.
        teacher_logits: In the shape of the logits.
        temperature: T > 0; it affects only the second part.
        others_weight: w, the factor of the second part.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats (the second part times T²).

    Raises:
        ValueError: If the temperature is not positive, the shapes differ, or the labels are soft.
    """
    _check_temperature(temperature)
    logits, teacher_logits = _prepare(logits, teacher_logits)
    classes = flatten_labels(labels)
    logits = flatten_logits(logits)
    teacher_logits = flatten_logits(teacher_logits)

    teacher_p = (select_class(teacher_logits, classes) - teacher_logits.logsumexp(1)).exp()
    target = teacher_p * F.cross_entropy(logits, classes, reduction="none")
    others_log_p = F.log_softmax(exclude_class(logits, classes) / temperature, 1)
    teacher_others_p = F.softmax(exclude_class(teacher_logits, classes) / temperature, 1)
    others = (teacher_others_p * others_log_p).sum(1)
    return unflatten_loss(target - others_weight * temperature**2 * others, labels)


def dist(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    inter_weight: NonNegative = 1.0,
    intra_weight: NonNegative = 1.0,
) -> Tensor:
    """Compute the correlation loss DIST, ``T² (inter_weight inter + intra_weight intra)``.

    In Huang et al. 2022, inter is 1 - Pearson's correlation between the student's and the teacher's
    probabilities of an example. Intra is the same for the probabilities of a class over the batch,
    averaged over the classes. All examples share this value, so the loss depends on the batch. With
    several processes or gradient accumulation, it is computed within each part of the batch. For a
    single example, intra is 0.

    Args:
        logits: ``[B, K]``.
        teacher_logits: ``[B, K]``.
        temperature: T > 0, of student and teacher.
        inter_weight: Factor of the correlations of examples.
        intra_weight: Factor of the correlations of classes.

    Returns:
        One loss per example, ``[B]``; T² times the weighted sum of two parts in [0, 2].

    Raises:
        ValueError: If the temperature is not positive, the shapes differ, or the logits are dense.
    """
    _check_temperature(temperature)
    if logits.ndim != 2:
        raise ValueError(f"dist is defined for logits [B, K], got {list(logits.shape)}")
    logits, teacher_logits = _prepare(logits, teacher_logits)
    p = F.softmax(logits / temperature, 1)
    teacher_p = F.softmax(teacher_logits / temperature, 1)

    inter = 1 - _pearson(p, teacher_p, dim=1)
    intra = torch.zeros_like(inter[:1])
    if len(p) > 1:
        intra = 1 - _pearson(p, teacher_p, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _prepare(logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Check that the shapes agree, cast both to float32 or better, and detach the teacher.

    A teacher may mask classes with logits of -inf. They become logits so small that their
    probability is 0, too, but finite, so that 0 · log 0 is 0.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            "student and teacher must have logits of the same shape, "
            f"got {list(logits.shape)} and {list(teacher_logits.shape)}"
        )
    teacher_logits = to_float32(teacher_logits.detach())
    smallest = teacher_logits.amax(1, keepdim=True) - MASKED_GAP
    teacher_logits = torch.where(teacher_logits == -math.inf, smallest, teacher_logits)
    return to_float32(logits), teacher_logits


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperatures must be positive and finite, got {temperature:g}")


def _standardise(logits: Tensor) -> Tensor:
    """Shift and scale the logits of each example to mean 0 and standard deviation 1."""
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise ValueError(
            "standardise needs at least 2 classes, because 1 logit has no standard deviation"
        )
    centred = logits - logits.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / (num_classes - 1)
    return centred / variance.clamp(min=1e-4).sqrt()


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return Pearson's correlation along a dimension.

    A deviation of length below 1e-8 counts as 1e-8, as in the authors' code.
    """
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    return F.cosine_similarity(a, b, dim=dim, eps=1e-8)
