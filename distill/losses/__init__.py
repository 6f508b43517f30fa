"""The terms of a loss, by the names that recipes use, and the one place where they are summed.

A new term is one function in one of these files and one line in `TERMS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from distill.losses.distillation import hard_label, kd, logit_mse
from distill.losses.labels import Outputs, cross_entropy

__all__ = ["TERMS", "Outputs", "cross_entropy", "hard_label", "kd", "logit_mse", "weighted_sum"]

TERMS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {term.__name__: term for term in (cross_entropy, kd, logit_mse, hard_label)}
)


def weighted_sum(
    loss: Mapping[str, Mapping[str, Any]], student: Outputs, labels: Tensor, teacher: Outputs | None, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, or of its part: ``Σ_terms weight Σ_examples term / count``.

    Args:
        loss: hyperparameters, with the weight, by the term's name.
        student: of this part of the batch.
        labels: ``[B]`` or ``[B, K]``.
        teacher: of the same views, or None.
        count: examples of the whole batch, so that the losses of its parts add up to its mean.

    Returns:
        the loss, a scalar, and each term's sum over the examples, detached and before its weight.
    """
    total, sums = student.logits.new_zeros((), dtype=student.logits.float().dtype), {}
    for name, settings in loss.items():
        hyperparameters = {key: value for key, value in settings.items() if key != "weight"}
        term_sum = TERMS[name](student, labels, teacher, **hyperparameters).sum()
        total = total + settings.get("weight", 1.0) * term_sum / count
        sums[name] = term_sum.detach()
    return total, sums
