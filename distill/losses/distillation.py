"""Losses on a teacher: what a student learns from another network's answers.

The same form as in `distill.losses.labels`; here `teacher` has no default, which is how a recipe knows
that the term needs one. No gradient reaches the teacher.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

from distill.losses.labels import Outputs

Temperature = Annotated[float, Gt(0)]


def kd(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    temperature: Temperature = 4.0,
    student_temperature: Temperature | None = None,
) -> Tensor:
    """Knowledge distillation, ``S² KL(p_t(T) ‖ p_s(S))`` (Hinton et al. 2015, section 2).

    By default both sides share the temperature, S = T, and the factor is Hinton's T², which holds the
    gradient's scale as T grows. With ``student_temperature: 1`` only the teacher is softened and the
    factor is 1: the setting of Müller et al. 2019, section 4. KL and cross-entropy with the teacher's
    distribution have the same gradient; KL is 0 where the student agrees.

    Args:
        student: logits ``[B, K]``.
        labels: not used.
        teacher: logits ``[B, K]``.
        temperature: T > 0, of the teacher.
        student_temperature: S > 0; T by default.

    Returns:
        ``[B]``, in nats times S².

    Raises:
        ValueError: if a temperature is not positive, or the class counts differ.
    """
    own = temperature if student_temperature is None else student_temperature
    if temperature <= 0 or own <= 0:
        raise ValueError(f"temperatures must be positive, got {temperature:g} and {own:g}")
    ours, theirs = _both(student, teacher)
    log_p = F.log_softmax(ours / own, dim=1)
    log_q = F.log_softmax(theirs / temperature, dim=1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1) * own**2


def logit_mse(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs,
    *,
    over_classes: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Half the squared distance of the logits, ``½ Σ_k (z_s - z_t)²`` (Ba and Caruana 2014; Müller et al.
    2019, appendix A.5, "equivalent to picking a high temperature").

    The paper does not say whether the classes are summed or averaged; `over_classes` does. Not invariant
    to a shift of the logits, as kd is.

    Args:
        student: logits ``[B, K]``.
        labels: not used.
        teacher: logits ``[B, K]``.
        over_classes: sum, or mean (1/K of it).

    Returns:
        ``[B]``, in squared logits.

    Raises:
        ValueError: if the class counts differ.
    """
    ours, theirs = _both(student, teacher)
    squares = (ours - theirs).square()
    return 0.5 * (squares.sum(1) if over_classes == "sum" else squares.mean(1))


def hard_label(student: Outputs, labels: Tensor, teacher: Outputs) -> Tensor:
    """Cross-entropy with the class that the teacher answers (Touvron et al. 2021, DeiT's hard distillation).

    Args:
        student: logits ``[B, K]``.
        labels: not used.
        teacher: logits ``[B, K]``; of equal largest ones, the first counts.

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if the class counts differ.
    """
    ours, theirs = _both(student, teacher)
    return F.cross_entropy(ours, theirs.argmax(1), reduction="none")


def _both(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    if student.logits.shape != teacher.logits.shape:
        shapes = f"{list(student.logits.shape)} and {list(teacher.logits.shape)}"
        raise ValueError(f"student and teacher must have logits of one shape, got {shapes}")
    return student.logits.float(), teacher.logits.detach().float()
