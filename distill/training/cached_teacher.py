"""Frozen teachers with a cache of their logits for the training views."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.devices.distributed import ONE_PROCESS, Distributed
from distill.losses import Outputs
from distill.training.logit_cache import LogitCache
from distill.training.logit_codec import Codec
from distill.training.teacher import Teacher

MAX_DEVICE_BYTES = 2**25
"""Approximate limit on the bytes of logits held on the device, for reading or for writing."""


class CachedTeacher:
    """A frozen teacher that reads its logits from a cache, or computes and caches them.

    Several processes split each batch: process i % world_size gets example i, as its own example
    number i // world_size. Process 0 writes the cache; all processes read it.

    Attributes:
        teacher: the network.
        codec: rounds the logits, whether they are cached or freshly computed, so that a student
            learns the same from both; None leaves them exact.
        cache: the teacher's cached logits; None if its students also need features or feature maps.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        codec: Codec | None = None,
        cache: LogitCache | None = None,
        batch_size: int = 0,
        dist: Distributed = ONE_PROCESS,
    ) -> None:
        """Wrap a teacher.

        Args:
            teacher: the network.
            codec: rounds the logits; None leaves them exact.
            cache: the teacher's cached logits for these views; with None, the teacher always runs.
            batch_size: number of examples in a batch, over all processes; required with a cache.
            dist: the processes that share each batch.
        """
        self.teacher = teacher
        self.codec = codec
        self.cache = cache
        self._batch_size = batch_size
        self._dist = dist
        self._stored: _StoredEpoch | None = None
        self._recorder: _Recorder | None = None

    @property
    def model(self) -> nn.Module:
        """Return the network, which determines how its input is normalised."""
        return self.teacher.model

    def begin_epoch(self, epoch: int, device: torch.device, *, whole: bool) -> None:
        """Read an epoch's logits from the cache, or start to write them if they are missing.

        Args:
            epoch: number of the epoch, from 0.
            device: where the students need the logits.
            whole: whether training starts at the first step of the epoch; only then can its logits
                be cached.
        """
        self._stored = None
        self._recorder = None
        if self.cache is None:
            return
        rows = self.cache.read(epoch)
        # Either all processes read the cache or none does. All take part in writing, since it
        # gathers their logits.
        found = self._dist.gather_objects(rows is not None)
        writable = self._dist.gather_objects(self.cache.is_writable)
        if all(found):
            self._stored = _StoredEpoch(rows, self.cache, self._batch_size, self._dist, device)
        elif whole and any(writable):
            self.cache.begin(epoch)
            self._recorder = _Recorder(self.cache, self._batch_size, self._dist)

    def __call__(
        self, images: Callable[[], Tensor], *, step: int, first: int, count: int
    ) -> Outputs:
        """Return the teacher's outputs for some of this process's views of a batch.

        Args:
            images: function that returns the network's normalised input `[count, C, H, W]`; it is
                called only if the teacher has to run.
            step: number of the batch in the epoch, from 0.
            first: number of the first view among this process's views of the batch.
            count: number of views.

        Returns:
            Logits `[count, K]` in float32. A teacher without a cache also returns the features or
            feature maps that the students' losses need.
        """
        if self._stored is not None:
            return Outputs(self._stored.logits(step=step, first=first, count=count))
        outputs = self.teacher(images())
        logits = self._record_and_round(outputs.logits)
        return outputs._replace(logits=logits.float())

    def _record_and_round(self, logits: Tensor) -> Tensor:
        """Write logits to the cache if this epoch is recorded; return them as students see them."""
        if self._recorder is None and self.codec is None:
            return logits
        codec = self.codec or self.cache.codec
        encoded = codec.encode(logits)
        if self._recorder is not None:
            self._recorder.add(encoded)
        return codec.decode(encoded) if self.codec else logits

    def end_epoch(self) -> None:
        """Write the epoch's remaining logits to the cache."""
        if self._recorder is not None:
            self._recorder.finish()


class _StoredEpoch:
    """The cached logits of one epoch: small ones are decoded at once, large ones batch by batch."""

    def __init__(
        self,
        rows: Tensor,
        cache: LogitCache,
        batch_size: int,
        dist: Distributed,
        device: torch.device,
    ) -> None:
        self._codec = cache.codec
        self._batch_size = batch_size
        self._dist = dist
        self._device = device
        self.is_decoded = 4 * cache.rows * cache.codec.classes <= MAX_DEVICE_BYTES
        self._rows = cache.codec.decode(rows.to(device)) if self.is_decoded else rows

    def logits(self, *, step: int, first: int, count: int) -> Tensor:
        """Return logits as `CachedTeacher.__call__` does."""
        processes = self._dist.world_size
        begin = step * self._batch_size + self._dist.rank + first * processes
        rows = self._rows[begin : begin + count * processes : processes]
        if self.is_decoded:
            return rows
        return self._codec.decode(rows.to(self._device, non_blocking=True))


class _Recorder:
    """Collects an epoch's encoded logits on the device and writes them in large blocks.

    Each write synchronises with the device, which would be too slow at every step.
    """

    def __init__(self, cache: LogitCache, batch_size: int, dist: Distributed) -> None:
        self._cache = cache
        self._batch_size = batch_size
        self._dist = dist
        # Number of examples in this process's part of each batch.
        self._own = len(range(dist.rank, batch_size, dist.world_size))
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def add(self, rows: Tensor) -> None:
        """Add the next encoded logits `[n, width]` of this process."""
        self._waiting.append(rows)
        self._num_waiting += len(rows)
        steps, unfinished = divmod(self._num_waiting, self._own)
        # Only complete batches are written, so that all processes gather after the same step.
        size = steps * self._batch_size * self._cache.codec.width
        if not unfinished and size >= MAX_DEVICE_BYTES:
            self._write()

    def finish(self) -> None:
        """Write the remaining logits and finish the epoch."""
        if self._waiting:
            self._write()
        self._cache.end()

    def _write(self) -> None:
        rows = self._gather(torch.cat(self._waiting))
        self._waiting = []
        self._num_waiting = 0
        self._cache.add(rows.cpu())

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, `[steps * batch_size, width]`, in order."""
        if self._dist.is_single:
            return rows
        batches = rows.unflatten(0, (-1, self._own))
        # Processes may differ by one example per batch, but gathering needs equal shapes.
        largest = -(-self._batch_size // self._dist.world_size)
        padded = F.pad(batches, (0, 0, 0, largest - self._own))
        # [world_size, steps, largest, width] → [steps, largest * world_size, width]
        gathered = self._dist.gather(padded[None]).permute(1, 2, 0, 3).flatten(1, 2)
        return gathered[:, : self._batch_size].flatten(0, 1)
