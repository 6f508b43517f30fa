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
from torch import Tensor

from distill.training.logit_codec import Codec

try:
    import fcntl
except ImportError:  # where files cannot be locked so, none is written
    fcntl = None

PAGE = 4096
DIGEST = 32
FORMAT = 1
AT_ONCE = 2**25  # bytes of answers that are held on the device at once, read or to be written
CHUNK = 2**24  # bytes of a file that are checked at once


# ---------------------------------------------------------------------------------------- the store


@dataclass
class LogitCache:
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
    log: Callable[[str], None] = field(default=print, repr=False)
    file: BinaryIO | None = field(default=None, repr=False)
    locked: BinaryIO | None = field(default=None, repr=False)

    def size(self, epochs: int) -> int:
        """Bytes of a file of so many epochs."""
        return PAGE + epochs * (DIGEST + self.rows * self.codec.width)

    @property
    def _page(self) -> bytes:
        stated = {
            "format": FORMAT,
            "identity": self.identity,
            "rows": self.rows,
            **asdict(self.codec),
        }
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
                for place in range(
                    begin + DIGEST, end, CHUNK
                ):  # read, as what fails in a map kills the process
                    digest.update(file.read(min(CHUNK, end - place)))
                if (
                    stated == digest.digest()
                ):  # the map is private, so that torch may think it writable
                    content = np.memmap(file, np.uint8, "c", begin + DIGEST, end - begin - DIGEST)
                    return torch.from_numpy(content).view(self.rows, self.codec.width)
        except (OSError, ValueError):
            return None
        self.log(f"{self.path}: the answers to epoch {epoch + 1} are damaged, and made again")
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
                self.log(
                    f"{self.path}: answers are not kept: {size / 1e9:.2g} GB, where data.logit_cache_gb leaves "
                    f"{max(0.0, limit - others) / 1e9:.2g} GB of {limit / 1e9:.2g}"
                )
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
        file = stack.enter_context(
            os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.locked = file
        stack.callback(self._release)
        page = file.read(PAGE)
        if page != self._page:
            if page:
                self.log(f"{self.path} holds something else than it should, and is made again")
            file.truncate(0)
            _write(file, 0, self._page)
        file.truncate(
            max(size, file.seek(0, os.SEEK_END))
        )  # the size is claimed now, the disk's space epoch by epoch
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
        self.log(f"{self.path}: answers are no longer kept: {error.strerror or error}")


def _write(file: BinaryIO, place: int, content: bytes) -> None:
    """All of the content, at once: nothing is left for when the file is closed."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file.fileno(), rest, place)
        rest, place = rest[written:], place + written


def count_stored_epochs(path: Path) -> int:
    """How many epochs of answers a store's file holds, unchecked; 0 if it is none."""
    try:
        with path.open("rb") as file:
            stated = json.loads(file.read(PAGE))
            codec = Codec(*(stated[name] for name in ("classes", "dtype", "top")))
            store = LogitCache(path, stated["identity"], stated["rows"], codec)
            epochs = (path.stat().st_size - PAGE) // (store.size(1) - PAGE)
            digests = [
                file.seek(store.size(epoch)) and file.read(DIGEST) for epoch in range(epochs)
            ]
            return sum(digest != bytes(DIGEST) for digest in digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
