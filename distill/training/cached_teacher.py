"""A teacher whose logits of training views are read from a cache, or computed and cached."""

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
"""About the most bytes of logits that are held on the device, read or to be written."""


class CachedTeacher:
    """A frozen teacher that reads its logits from a cache, or computes and caches them.

    With several processes, each batch is shared by them: example i is number i // world_size of
    process i % world_size. Process 0 writes the cache, all of them read it.

    Attributes:
        teacher: the network.
        codec: rounds the logits, cached or not, so that a student learns the same from both; None
            leaves them exact.
        cache: None for a teacher whose students need more than logits.
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
            codec: to round the logits; None leaves them exact.
            cache: of the teacher's logits of these views; None always computes them.
            batch_size: number of examples in a batch, over all processes; needed for a cache.
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
        """Read the logits of an epoch from the cache, or start to write them if they are missing.

        Args:
            epoch: from 0.
            device: that logits are wanted on.
            whole: whether all views of the epoch will be asked for, so that its logits can be
                cached.
        """
        self._stored = None
        self._recorder = None
        if self.cache is None:
            return
        rows = self.cache.read(epoch)
        # All processes read the cache or none does; all take part in writing, since it gathers
        # their logits.
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
            images: returns the network's normalised input `[count, C, H, W]`; called only if it is
                needed.
            step: the batch's number in the epoch.
            first: number of the first view among this process's views of the batch.
            count: number of views.

        Returns:
            Logits `[count, K]` in float32, and what else the students' losses need of a teacher
            without a cache.
        """
        if self._stored is not None:
            return Outputs(self._stored.logits(step=step, first=first, count=count))
        outputs = self.teacher(images())
        logits = self._record_and_round(outputs.logits)
        return outputs._replace(logits=logits.float())

    def _record_and_round(self, logits: Tensor) -> Tensor:
        """Cache logits if the epoch is recorded, and return them as students see them."""
        if self._recorder is None and self.codec is None:
            return logits
        codec = self.codec or self.cache.codec
        encoded = codec.encode(logits)
        if self._recorder is not None:
            self._recorder.add(encoded)
        return codec.decode(encoded) if self.codec else logits

    def end_epoch(self) -> None:
        """Write what is left of the epoch's logits to the cache."""
        if self._recorder is not None:
            self._recorder.finish()


class _StoredEpoch:
    """The cached logits of one epoch, decoded at once if they are small, else batch by batch."""

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
    """Collects encoded logits of an epoch on the device, and writes many at once.

    Writing waits for the device, so it must not happen at every step.
    """

    def __init__(self, cache: LogitCache, batch_size: int, dist: Distributed) -> None:
        self._cache = cache
        self._batch_size = batch_size
        self._dist = dist
        # Number of examples that this process has of each batch.
        self._own = len(range(dist.rank, batch_size, dist.world_size))
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def add(self, rows: Tensor) -> None:
        """Take the next encoded logits `[n, width]` of this process."""
        self._waiting.append(rows)
        self._num_waiting += len(rows)
        steps, unfinished = divmod(self._num_waiting, self._own)
        # Only complete batches are written, so that all processes gather after the same step.
        size = steps * self._batch_size * self._cache.codec.width
        if not unfinished and size >= MAX_DEVICE_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left, and end the epoch."""
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
        # Processes may differ by one example a batch; gathering needs equal shapes.
        largest = -(-self._batch_size // self._dist.world_size)
        padded = F.pad(batches, (0, 0, 0, largest - self._own))
        # [world_size, steps, largest, width] → [steps, largest * world_size, width]
        gathered = self._dist.gather(padded[None]).permute(1, 2, 0, 3).flatten(1, 2)
        return gathered[:, : self._batch_size].flatten(0, 1)
