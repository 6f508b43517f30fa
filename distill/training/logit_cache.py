"""A disk cache for teachers' logits on training views.

A view (an augmented image) depends only on seed, epoch and index, and so do a teacher's logits for
it. The cache therefore holds exactly what the teacher would compute again. The cache of one teacher
for one sequence of views is a folder:

    identity.json            all that the logits depend on, and the cache's largest size in bytes
    epoch-0000-DIGEST.npy    the encoded logits of one epoch, in the order of its views
    .lock                    locked by the process that writes the cache

An epoch's file gets its final name once it is complete, and is read only if its content matches the
digest in that name. So a killed process cannot leave wrong logits behind. You may delete the cache
at any time.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from distill.errors import UserError
from distill.storage.files import reason, temporary_path, write_text_atomically
from distill.training.logit_codec import Codec

FORMAT = 2
IDENTITY = "identity.json"
LOCK = ".lock"
DIGEST_BYTES = 16


@dataclass
class LogitCache:
    """The cached logits of one teacher for one sequence of views.

    Attributes:
        path: the folder.
        identity: JSON values, everything that the logits depend on; a folder with another identity
            is not read.
        rows: number of examples in an epoch.
        codec: how an example's logits are encoded.
        log: called with a message if a file is damaged or logits cannot be cached.
    """

    path: Path
    identity: dict[str, Any]
    rows: int
    codec: Codec
    log: Callable[[str], None] = field(default=print, repr=False)
    _is_writable: bool = field(default=False, init=False, repr=False)
    _writer: "_EpochWriter | None" = field(default=None, init=False, repr=False)

    @property
    def is_writable(self) -> bool:
        """Return whether this process may write: it holds the lock, and no write has failed."""
        return self._is_writable

    # -------------------------------------------------------------------------------------- reading

    def read(self, epoch: int) -> Tensor | None:
        """Return the encoded logits of an epoch, or None if they are not cached or are damaged.

        Returns:
            bytes `[rows, width]` on the CPU, memory-mapped from the file.
        """
        path = next(iter(_epoch_files(self.path, epoch)), None)
        if path is None or self._stored_identity() != self._identity_text():
            return None
        try:
            # Check the digest before mapping the file: a memory map of a damaged file can kill the
            # process.
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, partial(self.new_digest, epoch))
            if digest.hexdigest() == _digest_in(path):
                # Map the file copy-on-write, since torch warns about read-only arrays.
                return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except FileNotFoundError:
            # Someone has just deleted the cache.
            return None
        except OSError as error:
            self.log(f"{path}: cannot read it ({reason(error)}); the teacher runs again instead")
            return None
        self.log(f"{path} is damaged; the teacher runs again for epoch {epoch + 1}")
        return None

    def new_digest(self, epoch: int) -> "hashlib.blake2b":
        """Return a new digest for an epoch's file, which the caller feeds with the file's content.

        The digest covers the identity and the epoch, so a file of another cache or epoch never
        matches.
        """
        start = f"{self._identity_text()} {epoch}"
        return hashlib.blake2b(start.encode(), digest_size=DIGEST_BYTES)

    def header(self) -> bytes:
        """Return the header of an epoch's .npy file, for an array `[rows, width]` of bytes."""
        header = io.BytesIO()
        array = {"descr": "|u1", "fortran_order": False, "shape": (self.rows, self.codec.width)}
        np.lib.format.write_array_header_1_0(header, array)
        return header.getvalue()

    def _identity_text(self) -> str:
        """Return identity, shape and encoding as JSON text."""
        identity = {
            "format": FORMAT,
            "identity": self.identity,
            "rows": self.rows,
            "codec": asdict(self.codec),
        }
        return json.dumps(identity, sort_keys=True)

    def _stored_identity(self) -> str | None:
        """Return the identity that is stored in the folder, as JSON text; None if unknown."""
        stored = _read_identity(self.path)
        stored.pop("claimed_bytes", None)
        return json.dumps(stored, sort_keys=True) if stored else None

    # -------------------------------------------------------------------------------------- writing

    def size(self, epochs: int) -> int:
        """Return the size in bytes of a cache with this number of epochs."""
        return epochs * (len(self.header()) + self.rows * self.codec.width)

    @contextmanager
    def writing(self, epochs: int, limit: float) -> Iterator[None]:
        """Try to become the process that writes this cache, until the end of the block.

        The cache stays read-only if another process is writing it, if it would exceed the limit, or
        if the disk cannot be written. The last two cases are logged.

        Args:
            epochs: number of epochs that will be written.
            limit: largest total size in bytes of this cache and all caches beside it; 0 turns
                writing off.
        """
        if not limit or not self._fits(epochs, limit):
            yield
            return
        lock = FileLock(self.path / LOCK)
        # If another process holds the lock, it is writing the same logits.
        with self._errors_stop_writing(), suppress(Timeout):
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            self._prepare(epochs)
            self._is_writable = True
        try:
            yield
        finally:
            self._is_writable = False
            self._discard_epoch()
            lock.release()

    def _fits(self, epochs: int, limit: float) -> bool:
        """Return whether this cache, once complete, and all others stay within the limit."""
        size = self.size(epochs)
        others = 0
        for path in self.path.parent.glob("*"):
            if path != self.path:
                others += claimed_bytes(path)
        if others + size <= limit:
            return True
        left = max(0.0, limit - others)
        self.log(
            f"{self.path}: these logits are not cached. They need {size / 1e9:.2g} GB, but "
            f"{left / 1e9:.2g} GB of {limit / 1e9:.2g} GB are left; raise data.logit_cache_gb, or "
            "delete old caches in this folder"
        )
        return False

    def _prepare(self, epochs: int) -> None:
        """Claim disk space; remove files of another identity and of killed processes."""
        claim = self.size(epochs)
        # Only this process writes here now, so every temporary file comes from a killed process.
        for path in [*self.path.glob(".epoch-*"), *self.path.glob(f".{IDENTITY}.*")]:
            path.unlink(missing_ok=True)
        if self._stored_identity() == self._identity_text():
            claim = max(claim, _stored_claim(self.path))
        else:
            self._remove_epochs()
        content = {**json.loads(self._identity_text()), "claimed_bytes": claim}
        write_text_atomically(self.path / IDENTITY, json.dumps(content, indent=1) + "\n")

    def _remove_epochs(self) -> None:
        """Remove logits that belong to another identity."""
        paths = _epoch_files(self.path)
        if paths:
            self.log(
                f"{self.path} holds logits of another teacher or of other views (its {IDENTITY} "
                "differs); they are replaced"
            )
        for path in paths:
            path.unlink(missing_ok=True)

    def begin(self, epoch: int) -> None:
        """Start to write an epoch, unless this process may not write."""
        self._discard_epoch()
        if not self._is_writable:
            return
        with self._errors_stop_writing():
            for path in _epoch_files(self.path, epoch):
                path.unlink(missing_ok=True)
            self._writer = _EpochWriter(self, epoch)

    def add(self, rows: Tensor) -> None:
        """Write the next encoded logits of the epoch, bytes `[n, width]` on the CPU."""
        if self._writer is None:
            return
        with self._errors_stop_writing():
            self._writer.add(rows)

    def end(self) -> None:
        """Finish the epoch; its file gets its final name if it holds all examples."""
        if self._writer is None:
            return
        if self._writer.rows_written == self.rows:
            with self._errors_stop_writing():
                self._writer.publish()
        self._discard_epoch()

    def _discard_epoch(self) -> None:
        """Remove the file of an unfinished epoch."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    @contextmanager
    def _errors_stop_writing(self) -> Iterator[None]:
        """Stop writing the cache after a write error; the study continues without it."""
        try:
            yield
        except (OSError, UserError, NotImplementedError) as error:
            self._is_writable = False
            self._discard_epoch()
            self.log(
                f"{self.path}: cannot write it ({reason(error)}); the study continues without "
                "caching these logits"
            )


class _EpochWriter:
    """The file of one epoch while it is written, under a temporary name.

    Attributes:
        rows_written: number of examples written so far.
    """

    def __init__(self, cache: LogitCache, epoch: int) -> None:
        self.rows_written = 0
        self._name = f"epoch-{epoch:04d}"
        self._folder = cache.path
        self._digest = cache.new_digest(epoch)
        self._temporary = temporary_path(cache.path / self._name)
        self._file: BinaryIO = self._temporary.open("wb")
        try:
            self._write(cache.header())
        except OSError:
            self.discard()
            raise

    def add(self, rows: Tensor) -> None:
        self._write(rows.numpy().tobytes())
        self.rows_written += len(rows)

    def publish(self) -> None:
        self._file.close()
        self._temporary.replace(self._folder / f"{self._name}-{self._digest.hexdigest()}.npy")

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        # Leave nothing in the buffer: a data-loader worker that is forked now would inherit a copy
        # of it.
        self._file.flush()
        self._digest.update(content)


def count_stored_epochs(path: Path) -> int:
    """Return the number of epochs in a cache's folder, without checking their content.

    It is 0 if there is no cache, or if its identity cannot be read.
    """
    if not _read_identity(path):
        return 0
    return len({file.name.split("-")[1] for file in _epoch_files(path)})


def claimed_bytes(path: Path) -> int:
    """Return the bytes that a cache uses or has claimed, whichever is more.

    A study claims its space when it starts, so that concurrent studies together stay within the
    limit.

    Args:
        path: the cache's folder; any other file counts with its size.
    """
    if not path.is_dir():
        return _size(path)
    size = sum(_size(file) for file in path.glob("*"))
    return max(size, _stored_claim(path))


def _stored_claim(path: Path) -> int:
    """Return the bytes that the cache in a folder has claimed; 0 if unknown."""
    claim = _read_identity(path).get("claimed_bytes")
    return claim if isinstance(claim, int) else 0


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        # Another process has just deleted it.
        return 0


def _read_identity(path: Path) -> dict[str, Any]:
    """Return the content of a cache's identity.json, empty if it is absent or damaged."""
    try:
        content = json.loads((path / IDENTITY).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _epoch_files(path: Path, epoch: int | None = None) -> list[Path]:
    """Return the files of an epoch, or of all."""
    number = "*" if epoch is None else f"{epoch:04d}"
    return sorted(path.glob(f"epoch-{number}-*.npy"))


def _digest_in(path: Path) -> str:
    """Return the digest in the name of an epoch's file."""
    return path.stem.rsplit("-", 1)[1]
