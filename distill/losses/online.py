"""Online label smoothing: targets that a network learns from its own right answers, epoch by epoch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.common import IGNORED, Outputs, rows, select_class


class OnlineTargets(nn.Module):
    """The soft target of each class: the mean answer to its examples that were right in the last epoch.

    Before the first epoch, and for a class without a right answer, the target is uniform. The state is two
    matrices ``[K, K]``, kept in checkpoints: 8 MB for 1,000 classes.
    """

    targets: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("targets", torch.full((classes, classes), 1 / classes))
        self.register_buffer(
            "sums", torch.zeros(classes + 1, classes)
        )  # the last row is for what does not count
        self.register_buffer("counts", torch.zeros(classes + 1))

    @torch.no_grad()
    def capture_outputs(self, log_p: Tensor, classes: Tensor, counted: Tensor) -> None:
        """Add the right answers among ``[N, K]`` log-probabilities whose classes are ``[N]``."""
        right = (select_class(log_p, classes) == log_p.amax(1)) & counted
        row = torch.where(right, classes, len(self.targets))
        self.sums.index_add_(0, row, log_p.exp().to(self.sums.dtype))
        self.counts.index_add_(0, row, torch.ones_like(row, dtype=self.counts.dtype))

    @torch.no_grad()
    def end_epoch(self, reduce: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Take the epoch's means as the next targets; `reduce` sums a tensor over processes."""
        sums, counts = reduce(self.sums)[:-1], reduce(self.counts)[:-1, None]
        self.targets.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), 1 / len(counts)))
        self.forget()

    def forget(self) -> None:
        """Drop what has been observed in this epoch."""
        self.sums.zero_()
        self.counts.zero_()


def online_smoothing(
    student: Outputs, labels: Tensor, teacher: Outputs | None = None, *, part: OnlineTargets
) -> Tensor:
    """Cross-entropy with the class's online target, ``-Σ_k S_yk log p_k`` (Zhang et al. 2021, equation 6).

    The authors add it to cross-entropy with weights of 0.5 each.

    Args:
        student: logits ``[B, K]`` or ``[B, K, d…]``.
        labels: classes.
        teacher: not used.
        part: the targets; while it is in training mode it also observes the answers.

    Returns:
        ``[B]`` or ``[B, d…]``, in nats.

    Raises:
        ValueError: if the labels are soft.
    """
    logits, classes, finish = rows(student.logits, labels)
    log_p = F.log_softmax(logits, 1)
    if part.training:
        part.capture_outputs(log_p, classes, (labels != IGNORED).reshape(-1))
    return finish(-(F.embedding(classes, part.targets.to(log_p.dtype)) * log_p).sum(1))
