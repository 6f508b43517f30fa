"""Encode cached logits: exactly, as float16, or as the top k and the remaining mass."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.training.teacher import Teacher


@dataclass(frozen=True)
class Codec:
    """An encoding of logits `[N, K]` as bytes `[N, width]`, on any device.

    With `top_k`, the code of an example consists of its k largest logits, the logsumexp of the
    others, and the k classes. After decoding, the other classes have equal logits. Their total
    probability at temperature 1 is unchanged.

    Attributes:
        classes: K, the number of classes.
        dtype: type of the stored values: "float32", "float16" or "bfloat16"; the type of the
            network's output loses nothing.
        top_k: number of largest logits that are kept, below K; None keeps all.
    """

    classes: int
    dtype: str = "float32"
    top_k: int | None = None

    @property
    def width(self) -> int:
        """Return the number of bytes per example."""
        if self.top_k is None:
            return self.classes * self._value_type.itemsize
        return self._values_width + self.top_k * self._index_type.itemsize

    def encode(self, logits: Tensor) -> Tensor:
        """Return logits `[N, K]` of any floating type as bytes `[N, width]`.

        Values beyond the range of the stored type are clipped to its largest value.
        """
        if logits.dtype != self._value_type:
            largest = torch.finfo(self._value_type).max
            logits = logits.clamp(-largest, largest)
        if self.top_k is None:
            return _to_bytes(logits.to(self._value_type))
        return self._encode_top_k(logits.float())

    def decode(self, rows: Tensor) -> Tensor:
        """Return bytes `[N, width]` as logits `[N, K]` in float32."""
        if self.top_k is None:
            return _from_bytes(rows, self._value_type).float()
        return self._decode_top_k(rows)

    def _encode_top_k(self, logits: Tensor) -> Tensor:
        values, indices = logits.topk(self.top_k)
        others = logits.scatter(1, indices, -torch.inf)
        rest = others.logsumexp(1, keepdim=True)
        kept = torch.cat([values, rest], 1).to(self._value_type)
        return torch.cat([_to_bytes(kept), _to_bytes(indices.to(self._index_type))], 1)

    def _decode_top_k(self, rows: Tensor) -> Tensor:
        kept = _from_bytes(rows[:, : self._values_width], self._value_type).float()
        indices = _from_bytes(rows[:, self._values_width :], self._index_type).long()
        values = kept[:, :-1]
        rest = kept[:, -1:]
        # n equal logits z have the logsumexp z + log n.
        others = rest - math.log(self.classes - self.top_k)
        return others.expand(-1, self.classes).scatter(1, indices, values)

    @property
    def _values_width(self) -> int:
        """Return the number of bytes of the k values and the logsumexp of the others."""
        return (self.top_k + 1) * self._value_type.itemsize

    @property
    def _value_type(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def _index_type(self) -> torch.dtype:
        """Return the smallest type that holds every class."""
        if self.classes <= 2**8:
            return torch.uint8
        if self.classes <= 2**15:
            return torch.int16
        return torch.int32


def choose_codec(teacher: Teacher, view: Tensor, logit_cache: str | int) -> Codec:
    """Return the encoding of a teacher's logits that `data.logit_cache` asks for.

    Args:
        teacher: the teacher whose logits will be cached.
        view: one image `[1, C, H, W]`; its logits show their shape and type.
        logit_cache: "exact", "float16", or an integer k for the top k.
    """
    with torch.no_grad(), teacher.autocast(view.device):
        # Call the network itself: a compiled one would be recompiled for this batch of one image.
        logits = teacher.model(view)
    classes = logits.shape[1]
    if logit_cache == "exact":
        return Codec(classes, str(logits.dtype).removeprefix("torch."))
    if logit_cache == "float16":
        return Codec(classes, "float16")
    return Codec(classes, "float16", min(logit_cache, classes - 1))


def _to_bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    # Copy first: `view` needs aligned memory, but a part of a row may begin at any byte.
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)
