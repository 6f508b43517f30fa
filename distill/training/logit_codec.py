"""The logit store: what teachers say to training views, kept for students to come.

A view is a function of (seed, epoch, index), so a teacher's answer to it is, too: answers that are kept are exact. One
file holds those of one teacher to one stream of views, in the order in which the stream is seen, an epoch at a time. It
may be removed at any time; it only saves the teacher's pass.

    page 0      the file's identity, JSON
    epoch e     at PAGE + e·(32 + rows·width): 32 bytes of digest (zeros: not written yet), then a row an example

The process that holds the file's lock writes; any number read. An epoch counts only if its digest is right, so what was
cut off, flipped or left half written is made again.

In reading order: answers as bytes; the file; what one teacher says, live or stored.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.training.teacher import Teacher


@dataclass(frozen=True)
class Codec:
    """How logits ``[N, K]`` are kept, as bytes ``[N, width]`` on any device.

    Attributes:
        classes: K.
        dtype: of the values, "float32", "float16" or "bfloat16"; the network's own loses nothing.
        top: how many of the largest logits are kept; None is all. The others are then equal, and have together
            the probability that they had at temperature 1.
    """

    classes: int
    dtype: str = "float32"
    top: int | None = None

    @property
    def _index(self) -> torch.dtype:
        return (
            torch.uint8
            if self.classes <= 2**8
            else torch.int16
            if self.classes <= 2**15
            else torch.int32
        )

    @property
    def width(self) -> int:
        """Bytes of an example."""
        size = getattr(torch, self.dtype).itemsize
        return (
            self.classes * size
            if self.top is None
            else (self.top + 1) * size + self.top * self._index.itemsize
        )

    def encode(self, logits: Tensor) -> Tensor:
        """Bytes of logits; values beyond what a smaller dtype holds become its largest."""
        dtype = getattr(torch, self.dtype)
        if logits.dtype != dtype:
            logits = logits.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        if self.top is None:
            return _bytes(logits.to(dtype))
        values, index = logits.float().topk(self.top)
        rest = logits.float().scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat(
            [_bytes(torch.cat([values, rest], 1).to(dtype)), _bytes(index.to(self._index))], 1
        )

    def decode(self, rows: Tensor) -> Tensor:
        """Logits in float32."""
        dtype = getattr(torch, self.dtype)
        if self.top is None:
            return _as(rows, dtype).float()
        kept, index = rows.split(
            [(self.top + 1) * dtype.itemsize, self.top * self._index.itemsize], 1
        )
        kept, index = _as(kept, dtype).float(), _as(index, self._index).long()
        return (
            (kept[:, -1:] - np.log(self.classes - self.top))
            .expand(-1, self.classes)
            .scatter(1, index, kept[:, :-1])
        )


def choose_codec(teacher: Teacher, view: Tensor, kept: str | int) -> Codec:
    """How a teacher's answers are kept under `data.logit_cache`, from what it says to one view ``[1, C, H, W]``."""
    with torch.no_grad(), teacher.precision(view.device):
        logits = teacher.model(view)  # not compiled for a single view
    classes, dtype = logits.shape[1], str(logits.dtype).removeprefix("torch.")
    return Codec(
        classes,
        dtype if kept == "exact" else "float16",
        min(kept, classes - 1) if isinstance(kept, int) else None,
    )


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _as(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as values; a copy of their own, since a part of a row may begin anywhere."""
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)
