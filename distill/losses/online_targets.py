"""Online label smoothing: cross-entropy with targets learned from the network's own predictions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.tensor_ops import (
    IGNORED,
    flatten_labels,
    flatten_logits,
    select_class,
    unflatten_loss,
)

__all__ = ["OnlineTargets", "online_smoothing"]


class OnlineTargets(nn.Module):
    """A soft target for each class: the mean of its correct predictions in the last epoch.

    Targets are uniform in the first epoch, and for classes without a correct prediction. The state
    is two matrices ``[K, K]`` (8 MB for 1,000 classes), which are part of checkpoints.

    Attributes:
        targets: The targets in use, ``[K, K]``; row y is the distribution for label y.
        sums: Sum of this epoch's correct predictions for each class, ``[K + 1, K]``; the last row
            collects predictions that do not count.
        counts: Number of predictions in each row of `sums`, ``[K + 1]``.
    """

    targets: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        uniform = torch.full((num_classes, num_classes), 1 / num_classes)
        self.register_buffer("targets", uniform)
        self.register_buffer("sums", torch.zeros(num_classes + 1, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes + 1))

    @torch.no_grad()
    def update(self, log_p: Tensor, classes: Tensor, is_counted: Tensor) -> None:
        """Add the correct predictions of a batch to this epoch's sums.

        Args:
            log_p: Log-probabilities ``[N, K]``.
            classes: Labels ``[N]``.
            is_counted: Whether each example counts, ``[N]``.
        """
        is_correct = (select_class(log_p, classes) == log_p.amax(1)) & is_counted
        row = torch.where(is_correct, classes, len(self.targets))
        self.sums.index_add_(0, row, log_p.exp().to(self.sums.dtype))
        self.counts.index_add_(0, row, torch.ones_like(row, dtype=self.counts.dtype))

    @torch.no_grad()
    def end_epoch(self, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Make this epoch's means the targets, and start new sums.

        Args:
            reduce: Function that sums a tensor over all processes, if several train together.
        """
        sums = reduce(self.sums)[:-1]
        counts = reduce(self.counts)[:-1, None]
        means = torch.where(counts > 0, sums / counts.clamp(min=1), 1 / len(counts))
        self.targets.copy_(means)
        self.forget()

    def forget(self) -> None:
        """Drop the predictions of this epoch."""
        self.sums.zero_()
        self.counts.zero_()


def online_smoothing(logits: Tensor, labels: Tensor, *, targets: OnlineTargets) -> Tensor:
    """Compute the cross-entropy with online targets, ``-Σ_k S_yk log p_k``.

    This is equation 6 of Zhang et al. 2021. The authors add it to cross-entropy, with a weight of
    0.5 each.

    Args:
        logits: ``[B, K]`` or ``[B, K, d…]``.
        labels: Classes ``[B, d…]``.
        targets: The targets S. In training mode, the module also collects predictions. Call its
            `end_epoch` after each epoch.

    Returns:
        One loss per example, ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: If the labels are soft.
    """
    log_p = F.log_softmax(flatten_logits(logits), 1)
    classes = flatten_labels(labels)
    if targets.training:
        targets.update(log_p, classes, (labels != IGNORED).reshape(-1))
    soft_targets = F.embedding(classes, targets.targets.to(log_p.dtype))
    return unflatten_loss(-(soft_targets * log_p).sum(1), labels)
