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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distill.losses import Outputs
from distill.training.logit_cache import AT_ONCE, LogitCache
from distill.training.logit_codec import Codec
from distill.training.teacher import Teacher

# ----------------------------------------------------------------------------------- live or stored


class CachedTeacher:
    """What one teacher says to a cohort's views: from its store, else live; then kept there, if it may be.

    Attributes:
        teacher: the network.
        codec: where answers are rounded, stored or not, so that a student learns the same from both; else None.
        store: None for a teacher of whom more than logits is wanted.
        size: examples of a batch, over all processes.
        sharing: the processes that share each batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        codec: Codec | None = None,
        store: LogitCache | None = None,
        size: int = 0,
        sharing: Accelerator | None = None,
    ) -> None:
        self.teacher, self.codec, self.store, self.size, self.sharing = (
            teacher,
            codec,
            store,
            size,
            sharing,
        )
        self.world, self.rank = (
            (sharing.num_processes, sharing.process_index) if sharing else (1, 0)
        )
        self.own = len(range(self.rank, size, self.world))
        self.device = torch.device("cpu")
        self.epoch, self.keeps, self.stored = 0, False, None
        self.waiting: list[Tensor] = []
        self.waits = 0  # rows in it

    def begin(self, epoch: int, device: torch.device, whole: bool = True) -> None:
        """Look for an epoch's answers, and start to keep them if they are not there and all of them will be asked."""
        self.epoch, self.device, self.keeps, self.stored, self.waiting, self.waits = (
            epoch,
            device,
            False,
            None,
            [],
            0,
        )
        if not self.store:
            return
        self.stored = self.store.read(epoch)
        known, keeps = self.stored is not None, whole and self.store.file is not None
        if self.world > 1:
            every = gather_object([(known, keeps)])
            known, keeps = all(k for k, _ in every), any(k for _, k in every)
        if not known:
            self.stored, self.keeps = None, keeps
        elif 4 * self.store.rows * self.store.codec.classes <= AT_ONCE:
            self.stored = self.store.codec.decode(self.stored.to(device))
        if self.keeps:
            self.store.begin(epoch)

    def __call__(self, images: Callable[[], Tensor], step: int, first: int, count: int) -> Outputs:
        """CachedTeacher to `count` of this process's views of the epoch's batch `step`, from its number `first` on.

        They are in float32. `images` makes the network's input, where it is needed.
        """
        if self.stored is not None:
            begin = step * self.size + self.rank + first * self.world
            rows = self.stored[begin : begin + count * self.world : self.world]
            if rows.dtype == torch.uint8:  # too many to be decoded all at once
                rows = self.store.codec.decode(rows.to(self.device, non_blocking=True))
            return Outputs(rows)
        answer = self.teacher(images())
        if self.codec or self.keeps:
            rows = (self.codec or self.store.codec).encode(answer.logits)
            if self.codec:
                answer = answer._replace(logits=self.codec.decode(rows))
            if self.keeps:
                self._keep(rows)
        return answer._replace(logits=answer.logits.float())

    def end(self) -> None:
        """The epoch is over."""
        if self.keeps:
            if self.waiting:
                self._write()
            self.store.end(self.epoch)

    def _keep(self, rows: Tensor) -> None:
        """Hold rows back on the device, and write them all at once, which waits for it, when they are many."""
        self.waiting.append(rows)
        self.waits += len(rows)
        steps, rest = divmod(self.waits, self.own)  # the same steps on every process
        if not rest and steps * self.size * self.store.codec.width >= AT_ONCE:
            self._write()

    def _write(self) -> None:
        rows = torch.cat(self.waiting)
        self.waiting, self.waits = [], 0
        if self.world > 1:  # example i of a batch is number i // world of process i % world
            share = -(-self.size // self.world)
            rows = F.pad(rows.unflatten(0, (-1, self.own)), (0, 0, 0, share - self.own))
            rows = (
                self.sharing.gather(rows[None])
                .permute(1, 2, 0, 3)
                .flatten(1, 2)[:, : self.size]
                .flatten(0, 1)
            )
        self.store.add(rows.cpu())
