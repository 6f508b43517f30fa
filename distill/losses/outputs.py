"""The outputs of a network that losses can use, and the outputs of an ensemble of networks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.tensor_ops import to_float32


class Outputs(NamedTuple):
    """The outputs of one network for a batch of B images and K classes.

    The parameters of a loss name the fields that it needs: `features` is a field of the student's
    outputs, and `teacher_features` is one of the teacher's.

    Attributes:
        logits: ``[B, K]``, or ``[B, K, d…]`` for dense predictions.
        features: Penultimate features ``[B, D]``, the input of the last layer.
        templates: Weight of the last layer ``[K, D]``; a row is the template of a class.
        feature_maps: Output of each stage, ``[B, C, H, W]``, from the first stage to the last.
        weights: The network's weights, without biases and normalisation parameters.
        logit_scale: s if the logits are s·cos(angle between features and template), as for a
            cosine head; 0 if they are ‖features‖·cos; None for plain logits.
    """

    logits: Tensor
    features: Tensor | None = None
    templates: Tensor | None = None
    feature_maps: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None
    logit_scale: float | None = None


def ensemble(teachers: Sequence[Outputs]) -> Outputs:
    """Combine several teachers into one whose softmax is the mean of their probabilities.

    The logits are ``log mean_teachers softmax(logits)`` at temperature 1, so a temperature in the
    loss softens this one distribution.

    Args:
        teachers: Outputs of one or more networks for the same images.

    Returns:
        The outputs of a single teacher unchanged. For several teachers, outputs with logits alone,
        because features and feature maps of different networks cannot be averaged.
    """
    if len(teachers) == 1:
        return teachers[0]
    log_p = torch.stack([F.log_softmax(to_float32(teacher.logits), 1) for teacher in teachers])
    return Outputs(log_p.logsumexp(0) - math.log(len(teachers)))
