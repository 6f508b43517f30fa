"""Operations on logits and labels that several losses share.

All losses compute in log space, in float32 or better, and return one value per example. Logits are
``[B, K]``, or ``[B, K, d…]`` with labels ``[B, d…]``. Such dense logits are flattened to rows
``[N, K]`` with N = B·d…, and the losses ``[N]`` are reshaped to the labels' shape. The label
`IGNORED` gives a loss of 0 and no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of examples that do not count; PyTorch's default `ignore_index`."""


def to_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flatten_logits(logits: Tensor) -> Tensor:
    """Return logits ``[B, K, d…]`` as rows ``[N, K]``, at least in float32."""
    logits = to_float32(logits)
    if logits.ndim == 2:
        return logits
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def flatten_labels(labels: Tensor) -> Tensor:
    """Return labels ``[B, d…]`` as classes ``[N]``, with class 0 in place of `IGNORED`.

    Raises:
        ValueError: If the labels are soft: losses that call this are defined only for classes.
    """
    if labels.is_floating_point():
        raise ValueError(
            "needs class labels, not soft labels; do not combine it with mixup or cutmix"
        )
    return labels.masked_fill(labels == IGNORED, 0).reshape(-1)


def unflatten_loss(loss: Tensor, labels: Tensor) -> Tensor:
    """Return losses ``[N]`` in the labels' shape ``[B, d…]``, with 0 where a label is `IGNORED`."""
    return mask_ignored(loss.view(labels.shape), labels)


def mask_ignored(loss: Tensor, labels: Tensor) -> Tensor:
    """Set the loss ``[B, d…]`` to 0 where a label is `IGNORED`; soft labels are never ignored."""
    if labels.is_floating_point():
        return loss
    return loss.masked_fill(labels == IGNORED, 0)


def select_class(values: Tensor, classes: Tensor) -> Tensor:
    """Return ``values[n, classes[n]]``, ``[N]``, of values ``[N, K]`` and classes ``[N]``."""
    return values.gather(1, classes[:, None])[:, 0]


def exclude_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Return logits ``[N, K]`` in which the given class of each row has probability 0.

    The replaced logit is -1e30 and not -inf, so that differences of such logits stay finite.
    """
    return logits.scatter(1, classes[:, None], -1e30)


def split_class(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split log-probabilities into those of a class and of all others.

    log(1 - p_y) is computed from the other classes, so it is exact also where p_y rounds to 1.

    Args:
        logits: ``[N, K]`` with K ≥ 2.
        classes: The class y of each row, ``[N]``.

    Returns:
        log p_y ``[N]``, log(1 - p_y) ``[N]``, and the log-probabilities ``[N, K]`` of the other
        classes among themselves.
    """
    others = F.log_softmax(exclude_class(logits, classes), 1)

    # The log-sum-exp of the other classes is z_j - others_j for any other class j. This saves a
    # pass over the logits that `logsumexp` would need.
    another = (classes + 1) % logits.shape[1]
    target_logit, another_logit = logits.gather(1, torch.stack([classes, another], 1)).unbind(1)
    others_logsumexp = another_logit - select_class(others, another)

    total = torch.logaddexp(target_logit, others_logsumexp)
    return target_logit - total, others_logsumexp - total, others
