"""Keep the running sums of an epoch on the device, so that no step waits for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.devices.distributed import Distributed

LOSS = "loss"
CORRECT = "correct"


@dataclass(frozen=True)
class MicroBatchRecord:
    """The losses of a micro-batch on this process, kept until the next check for divergence.

    Attributes:
        step: number of the step in its epoch, from 0.
        loss: summed over the images, a scalar on the device.
        terms: each loss term, summed over the images, before its weight.
    """

    step: int
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass
class Meters:
    """Sums over the images of the current epoch, on the device.

    Attributes:
        sums: the loss, the number of correct predictions, and each loss term under `terms.NAME`.
        recent: micro-batches since the last check for divergence.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    recent: list[MicroBatchRecord] = field(default_factory=list)

    def reset(self) -> None:
        """Clear the sums at the start of an epoch."""
        self.sums = {}

    @torch.no_grad()
    def update(self, record: MicroBatchRecord, logits: Tensor, labels: Tensor) -> None:
        """Add the losses and the correct predictions of one micro-batch.

        Args:
            record: the losses.
            logits: `[B, K]`.
            labels: `[B]`, or `[B, K]` after mixup or cutmix.
        """
        hard_labels = labels.argmax(1) if labels.ndim == 2 else labels
        self.recent.append(record)
        self._add(LOSS, record.loss)
        self._add(CORRECT, (logits.argmax(1) == hard_labels).sum())
        for name, value in record.terms.items():
            self._add(f"terms.{name}", value)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + value.float()

    def recent_are_finite(self) -> Tensor:
        """Return whether the loss of each recent micro-batch was finite, on the device."""
        return torch.stack([record.loss for record in self.recent]).isfinite()

    def total(self, dist: Distributed) -> dict[str, Tensor]:
        """Return the sums over all processes, on the device."""
        names = sorted(self.sums)
        totals = dist.sum(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, totals, strict=True))

    def means(self, images: int, dist: Distributed) -> "EpochMeans":
        """Return the means over the images of the epoch; this waits for the device."""
        totals = self.total(dist)
        values = torch.stack(list(totals.values())).tolist()
        means = {name: value / images for name, value in zip(totals, values, strict=True)}
        return EpochMeans(
            loss=means.pop(LOSS),
            top1=means.pop(CORRECT),
            terms={name.removeprefix("terms."): value for name, value in means.items()},
        )

    def move_to_main(self, dist: Distributed) -> None:
        """Move all sums to process 0, so that its checkpoint has those of every process."""
        if not dist.is_single:
            self.sums = {name: value * dist.is_main for name, value in self.total(dist).items()}

    def load(self, sums: Mapping[str, Tensor], device: torch.device, dist: Distributed) -> None:
        """Restore the sums of a checkpoint on process 0; the other processes start from zero."""
        self.sums = {name: value.to(device) * dist.is_main for name, value in sums.items()}


@dataclass(frozen=True)
class EpochMeans:
    """Means over the training images of one epoch.

    Attributes:
        loss: the weighted sum of all terms.
        top1: fraction of correct predictions, in [0, 1].
        terms: each loss term, before its weight.
    """

    loss: float
    top1: float
    terms: dict[str, float]
