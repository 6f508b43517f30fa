"""Losses on labels: what a network learns from the data alone.

Every term has the form ``f(student, labels, teacher=None, *, hyperparameters) -> [B]``: per example, in
nats, computed in float32 in log space. The mean over the batch and the weight are applied in one place,
`distill.losses.weighted_sum`.
"""

from typing import Annotated, Literal, NamedTuple

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: ``[B, K]``.
        features: penultimate features ``[B, D]``, where a term asks for them.
        templates: weight of the last layer ``[K, D]``, where a term asks for it.
    """

    logits: Tensor
    features: Tensor | None = None
    templates: Tensor | None = None


def cross_entropy(
    student: Outputs,
    labels: Tensor,
    teacher: Outputs | None = None,
    *,
    smoothing: Annotated[float, Ge(0), Le(1)] = 0.0,
    over: Literal["all", "others"] = "all",
) -> Tensor:
    """Cross-entropy with label smoothing, ``H(q, p)``.

    ``over: all`` gives the mass to all K classes, ``q = (1 - smoothing) y + smoothing / K`` (Müller et al.
    2019, section 1.1; torch and timm). ``over: others`` gives it to the K - 1 wrong ones, ``q_j = smoothing
    / (K - 1)`` (Shen et al. 2021; the "confidence" form), which is the first form with ``smoothing K /
    (K - 1)``. The minimum is H(q), which is not 0.

    Args:
        student: logits ``[B, K]``.
        labels: classes ``[B]``, or distributions ``[B, K]`` as mixup makes them, smoothed here once.
        teacher: not used.
        smoothing: mass in [0, 1]; over the others at most (K - 1) / K, where the target is uniform.
        over: which classes share the mass.

    Returns:
        ``[B]``, in nats.

    Raises:
        ValueError: if smoothing is out of its range (torch ignores a negative one in silence).
    """
    logits = student.logits.float()
    classes = logits.shape[1]
    highest = 1.0 if over == "all" else (classes - 1) / classes
    if not 0 <= smoothing <= highest:
        raise ValueError(f"smoothing over {over} of {classes} classes must be in [0, {highest:g}], got {smoothing:g}")
    mass = smoothing if over == "all" else min(1.0, smoothing * classes / max(classes - 1, 1))
    labels = labels.float() if labels.is_floating_point() else labels
    return F.cross_entropy(logits, labels, label_smoothing=mass, reduction="none")
