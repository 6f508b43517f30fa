"""What all terms share: what they are given, in which shape and precision they work, and what is ignored.

Every term of this package has the form ``f(student, labels, teacher=None, *, hyperparameters) -> [B]``: per
example, in nats, computed in log space in float32 (float64 stays). The mean over the batch and the weight
are applied in one place, `distill.losses.compute_loss`. Logits may have further dimensions, ``[B, K, d…]``
with labels ``[B, d…]``; the result then has the shape of the labels. A label of `IGNORED` gives loss 0 and
no gradient.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # torch's own default


class Outputs(NamedTuple):
    """What a network says about a batch, and what some terms look at inside of it.

    Attributes:
        logits: ``[B, K]``, or ``[B, K, d…]``.
        features: penultimate features ``[B, D]``.
        templates: weight of the last layer ``[K, D]``.
        feature_maps: feature maps of the stages, each ``[B, C, H, W]``.
        weights: the network's weights but for biases and norms.
        logit_scale: s where the logits are s·cos(angle to the template), as those of a cosine head; 0 where s is the
            length of the features.
    """

    logits: Tensor
    features: Tensor | None = None
    templates: Tensor | None = None
    feature_maps: Sequence[Tensor] | None = None
    weights: Sequence[Tensor] | None = None
    logit_scale: float | None = None


def to_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Logits as rows ``[N, K]``, their classes ``[N]``, and what brings ``[N]`` losses into the labels' shape.

    Raises:
        ValueError: for soft labels, of which these terms have no definition.
    """
    if labels.is_floating_point():
        raise ValueError(
            "this term needs classes, not soft labels: it does not go with mixup or cutmix"
        )
    logits = to_float32(logits)
    flat = logits if logits.ndim == 2 else logits.movedim(1, -1).reshape(-1, logits.shape[1])
    ignored = labels == IGNORED
    classes = labels.masked_fill(ignored, 0).reshape(-1)
    return flat, classes, lambda loss: loss.view(labels.shape).masked_fill(ignored, 0)


def select_class(values: Tensor, classes: Tensor) -> Tensor:
    """The entry of each row ``[N, K]`` that its class ``[N]`` names."""
    return values.gather(1, classes[:, None])[:, 0]


def exclude_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits ``[N, K]`` whose own class has no probability left; finite, so that differences are, too."""
    return logits.scatter(1, classes[:, None], -1e30)


def split_class(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y and log(1 - p_y) ``[N]``, and the other classes' log-probabilities among themselves ``[N, K]``.

    log(1 - p_y) comes from the other classes, so it is exact where p_y rounds to 1. K must be 2 or more.
    """
    others = F.log_softmax(
        exclude_class(logits, classes), 1
    )  # one pass, where logsumexp takes three
    another = (classes + 1) % logits.shape[1]
    own, other = logits.gather(1, torch.stack([classes, another], 1)).unbind(1)
    rest = other - select_class(others, another)  # the other classes' logsumexp
    total = torch.logaddexp(own, rest)
    return own - total, rest - total, others


def mask_ignored(loss: Tensor, labels: Tensor | None) -> Tensor:
    """Nothing where the label is ignored, for terms that need no label otherwise."""
    if labels is None or labels.is_floating_point():
        return loss
    return loss.masked_fill(labels == IGNORED, 0)
