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

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distill.losses import Outputs
from distill.teachers import Teacher

try:
    import fcntl
except ImportError:  # where files cannot be locked so, none is written
    fcntl = None

PAGE = 4096
DIGEST = 32
FORMAT = 1
AT_ONCE = 2**25  # bytes of answers that are held on the device at once, read or to be written
CHUNK = 2**24  # bytes of a file that are checked at once


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
        return torch.uint8 if self.classes <= 2**8 else torch.int16 if self.classes <= 2**15 else torch.int32

    @property
    def width(self) -> int:
        """Bytes of an example."""
        size = getattr(torch, self.dtype).itemsize
        return self.classes * size if self.top is None else (self.top + 1) * size + self.top * self._index.itemsize

    def encode(self, logits: Tensor) -> Tensor:
        """Bytes of logits; values beyond what a smaller dtype holds become its largest."""
        dtype = getattr(torch, self.dtype)
        if logits.dtype != dtype:
            logits = logits.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        if self.top is None:
            return _bytes(logits.to(dtype))
        values, index = logits.float().topk(self.top)
        rest = logits.float().scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([_bytes(torch.cat([values, rest], 1).to(dtype)), _bytes(index.to(self._index))], 1)

    def decode(self, rows: Tensor) -> Tensor:
        """Logits in float32."""
        dtype = getattr(torch, self.dtype)
        if self.top is None:
            return _as(rows, dtype).float()
        kept, index = rows.split([(self.top + 1) * dtype.itemsize, self.top * self._index.itemsize], 1)
        kept, index = _as(kept, dtype).float(), _as(index, self._index).long()
        return (kept[:, -1:] - np.log(self.classes - self.top)).expand(-1, self.classes).scatter(1, index, kept[:, :-1])


def codec_of(teacher: Teacher, view: Tensor, kept: str | int) -> Codec:
    """How a teacher's answers are kept under `data.store`, from what it says to one view ``[1, C, H, W]``."""
    with torch.no_grad(), teacher.precision(view.device):
        logits = teacher.model(view)  # not compiled for a single view
    classes, dtype = logits.shape[1], str(logits.dtype).removeprefix("torch.")
    return Codec(classes, dtype if kept == "exact" else "float16",
                 min(kept, classes - 1) if isinstance(kept, int) else None)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _as(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as values; a copy of their own, since a part of a row may begin anywhere."""
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)


# ------------------------------------------------------------------------------------------------- the store


@dataclass
class LogitStore:
    """The file of one teacher's answers to one stream of views.

    Attributes:
        path: of the file.
        identity: all that the answers depend on; the file states it, and one that states another is refused.
        rows: examples of an epoch.
        codec: of an example.
        say: where what is found wrong is told.
        file: open for writing, while this process holds the file's lock and nothing has gone wrong.
        locked: the file whose lock it is.
    """

    path: Path
    identity: dict[str, Any]
    rows: int
    codec: Codec
    say: Callable[[str], None] = field(default=print, repr=False)
    file: BinaryIO | None = field(default=None, repr=False)
    locked: BinaryIO | None = field(default=None, repr=False)

    def size(self, epochs: int) -> int:
        """Bytes of a file of so many epochs."""
        return PAGE + epochs * (DIGEST + self.rows * self.codec.width)

    @property
    def _page(self) -> bytes:
        stated = {"format": FORMAT, "identity": self.identity, "rows": self.rows, **asdict(self.codec)}
        return json.dumps(stated, sort_keys=True).encode().ljust(PAGE)

    def _digest(self, epoch: int) -> "hashlib.blake2b":
        return hashlib.blake2b(self._page + epoch.to_bytes(4), digest_size=DIGEST)

    def read(self, epoch: int) -> Tensor | None:
        """An epoch's rows ``[rows, width]``, mapped from the file, or None where they are not (rightly) there."""
        begin, end = self.size(epoch), self.size(epoch + 1)
        try:
            with self.path.open("rb") as file:
                if file.read(PAGE) != self._page or os.fstat(file.fileno()).st_size < end:
                    return None
                file.seek(begin)
                stated, digest = file.read(DIGEST), self._digest(epoch)
                if stated == bytes(DIGEST):
                    return None
                for place in range(begin + DIGEST, end, CHUNK):  # read, as what fails in a map kills the process
                    digest.update(file.read(min(CHUNK, end - place)))
                if stated == digest.digest():  # the map is private, so that torch may think it writable
                    content = np.memmap(file, np.uint8, "c", begin + DIGEST, end - begin - DIGEST)
                    return torch.from_numpy(content).view(self.rows, self.codec.width)
        except (OSError, ValueError):
            return None
        self.say(f"{self.path}: the answers to epoch {epoch + 1} are damaged, and made again")
        return None

    @contextmanager
    def writing(self, epochs: int, limit: float) -> Iterator[None]:
        """Within it this process may write, if no other does and the folder stays below `limit` bytes."""
        size, others = self.size(epochs), 0
        for path in self.path.parent.glob("*"):
            with suppress(OSError):  # it may be removed meanwhile
                others += path.stat().st_size if path != self.path else 0
        with ExitStack() as stack:
            if not limit:
                pass
            elif others + size > limit:
                self.say(f"{self.path}: answers are not kept: {size / 1e9:.2g} GB, where data.store_limit leaves "
                         f"{max(0.0, limit - others) / 1e9:.2g} GB of {limit / 1e9:.2g}")
            elif fcntl:
                try:
                    self._lock(stack, size)
                except BlockingIOError:  # another process writes the same
                    pass
                except OSError as error:
                    self._give_up(error)
            yield

    def _release(self) -> None:
        """Give up the lock; closing is not enough, since a process that decodes images may have been forked."""
        self.file = None
        with suppress(OSError):
            fcntl.flock(self.locked, fcntl.LOCK_UN)

    def _lock(self, stack: ExitStack, size: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.locked = file
        stack.callback(self._release)
        page = file.read(PAGE)
        if page != self._page:
            if page:
                self.say(f"{self.path} holds something else than it should, and is made again")
            file.truncate(0)
            _write(file, 0, self._page)
        file.truncate(max(size, file.seek(0, os.SEEK_END)))  # the size is claimed now, the disk's space epoch by epoch
        self.file = file

    def begin(self, epoch: int) -> None:
        """Start to write an epoch; nothing here happens in a process that may not write."""
        self.written, self.hash = self.size(epoch) + DIGEST, self._digest(epoch)
        self._put(self.size(epoch), bytes(DIGEST))

    def add(self, rows: Tensor) -> None:
        """The next rows ``[n, width]`` of the epoch, uint8 on the CPU."""
        if not self.file:
            return
        content = rows.numpy().tobytes()
        self._put(self.written, content)
        self.written += len(content)
        self.hash.update(content)

    def end(self, epoch: int) -> None:
        """The epoch is whole: say so in the file."""
        if self.file and self.written == self.size(epoch + 1):
            self._put(self.size(epoch), self.hash.digest())

    def _put(self, place: int, content: bytes) -> None:
        try:
            if self.file:
                _write(self.file, place, content)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.file = None
        self.say(f"{self.path}: answers are no longer kept: {error.strerror or error}")


def _write(file: BinaryIO, place: int, content: bytes) -> None:
    """All of the content, at once: nothing is left for when the file is closed."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file.fileno(), rest, place)
        rest, place = rest[written:], place + written


def stored_epochs(path: Path) -> int:
    """How many epochs of answers a store's file holds, unchecked; 0 if it is none."""
    try:
        with path.open("rb") as file:
            stated = json.loads(file.read(PAGE))
            codec = Codec(*(stated[name] for name in ("classes", "dtype", "top")))
            store = LogitStore(path, stated["identity"], stated["rows"], codec)
            epochs = (path.stat().st_size - PAGE) // (store.size(1) - PAGE)
            digests = [file.seek(store.size(epoch)) and file.read(DIGEST) for epoch in range(epochs)]
            return sum(digest != bytes(DIGEST) for digest in digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


# ------------------------------------------------------------------------------------------ live or stored


class Answers:
    """What one teacher says to a cohort's views: from its store, else live; then kept there, if it may be.

    Attributes:
        teacher: the network.
        codec: where answers are rounded, stored or not, so that a student learns the same from both; else None.
        store: None for a teacher of whom more than logits is wanted.
        size: examples of a batch, over all processes.
        sharing: the processes that share each batch.
    """

    def __init__(self, teacher: Teacher, codec: Codec | None = None, store: LogitStore | None = None, size: int = 0,
                 sharing: Accelerator | None = None) -> None:
        self.teacher, self.codec, self.store, self.size, self.sharing = teacher, codec, store, size, sharing
        self.world, self.rank = (sharing.num_processes, sharing.process_index) if sharing else (1, 0)
        self.own = len(range(self.rank, size, self.world))
        self.device = torch.device("cpu")
        self.epoch, self.keeps, self.stored = 0, False, None
        self.waiting: list[Tensor] = []
        self.waits = 0  # rows in it

    def begin(self, epoch: int, device: torch.device, whole: bool = True) -> None:
        """Look for an epoch's answers, and start to keep them if they are not there and all of them will be asked."""
        self.epoch, self.device, self.keeps, self.stored, self.waiting, self.waits = epoch, device, False, None, [], 0
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
        """Answers to `count` of this process's views of the epoch's batch `step`, from its number `first` on.

        They are in float32. `images` makes the network's input, where it is needed.
        """
        if self.stored is not None:
            begin = step * self.size + self.rank + first * self.world
            rows = self.stored[begin:begin + count * self.world:self.world]
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
            rows = self.sharing.gather(rows[None]).permute(1, 2, 0, 3).flatten(1, 2)[:, :self.size].flatten(0, 1)
        self.store.add(rows.cpu())
