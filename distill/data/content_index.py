"""Digests of image files, kept in an index, so that unchanged files are not read again.

The identity of a data set is the content of its files. To read all of ImageNet takes minutes, so
the index remembers the digest of each file with its size, its modification and change time and its
place on the disk. A file is read again if one of these has changed. No program can set the change
time of a file, so a file with other content is always noticed.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

# A part of the file's name: raise it when what is stored about a file changes.
INDEX_VERSION = 2

DIGEST_BYTES = 16
FILES_AT_ONCE = 256
FEW_BATCHES = 10
THREADS = 8
UNIT = f"× {FILES_AT_ONCE} files"

# Times of a file are not exact. A file that changed within this time of being read may change once
# more without a new time.
TRUSTED_AFTER_SECONDS = 2.0

# Formats of which one file can hold several pictures. A viewer shows the first picture of a JPEG
# file; others in it are previews or depth.
SEVERAL_PICTURES = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif", ".heic", ".heif")

Track = Callable[[list, str, str], Iterable]
"""A function of things, title and unit that yields the things and shows how many are done."""


class StoredContent(NamedTuple):
    """``N`` files whose content can be read.

    Attributes:
        key: identifies the folder or archive of the files on this machine.
        names: the files' names ``[N]``, unique within it.
        stamps: ``[N, 4]``, for each file its size, its modification time and change time in
            nanoseconds, and its place on the disk.
        read: returns the content of a file by its number.
    """

    key: str
    names: NDArray[np.bytes_]
    stamps: NDArray[np.int64]
    read: Callable[[int], bytes]

    def select(self, kept: list[int]) -> "StoredContent":
        """Return some of the files, numbered anew."""
        return StoredContent(
            self.key, self.names[kept], self.stamps[kept], lambda i: self.read(kept[i])
        )


class FileFacts(NamedTuple):
    """What the index knows about ``N`` files.

    Attributes:
        digests: digest of each file's content, ``[N, 16]`` bytes.
        has_more: whether the file has further pages or frames after its first picture, ``[N]``.
        sizes: width and height of each image as it is stored, ``[N, 2]``; 0 if it is no image.
    """

    digests: NDArray[np.uint8]
    has_more: NDArray[np.bool_]
    sizes: NDArray[np.int32]

    @classmethod
    def empty(cls, count: int) -> "FileFacts":
        """Return facts of files that are still to be filled in."""
        digests = np.zeros((count, DIGEST_BYTES), np.uint8)
        return cls(digests, np.zeros(count, bool), np.zeros((count, 2), np.int32))

    def select(self, chosen: NDArray[np.bool_]) -> "FileFacts":
        """Return the facts of some of the files."""
        return FileFacts(*(values[chosen] for values in self))


class _Index(NamedTuple):
    """The stored index of one location: the names, stamps and facts of its files."""

    names: NDArray[np.bytes_]
    stamps: NDArray[np.int64]
    facts: FileFacts


def untracked(things: list, _title: str, _unit: str) -> Iterator:
    """Yield things without showing anything."""
    yield from things


def read_facts(content: StoredContent, track: Track = untracked) -> FileFacts:
    """Return the facts of files, from the index or by reading them; the index then knows them.

    Args:
        content: the files.
        track: shows the progress of reading.
    """
    key, names, stamps, _ = content
    path = _index_path(key)
    # Processes that start together read the files once.
    with _lock(path):
        index = _load(path)
        facts, unknown = _known_facts(index, names, stamps)
        if len(unknown):
            started = time.time_ns()
            _read_unknown(facts, unknown, content, track)
            latest_change = stamps[:, 1:3].max(axis=1)
            trusted = latest_change < started - TRUSTED_AFTER_SECONDS * 1e9
            _save(path, _Index(names[trusted], stamps[trusted], facts.select(trusted)), index)
    return facts


def cache_folder() -> Path | None:
    """Return the folder of the indexes, by the XDG standard; None without a home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "distill"
    except RuntimeError:
        return None


def _index_path(key: str) -> Path | None:
    """Return the file of an index; None if it cannot be written."""
    folder = cache_folder()
    if folder is None:
        return None
    folder = folder / "content"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return folder / f"{digest}-{INDEX_VERSION}.npz"


def _lock(path: Path | None) -> AbstractContextManager:
    return FileLock(path.with_suffix(".lock")) if path else nullcontext()


def _load(path: Path | None) -> _Index | None:
    """Return a stored index; None if there is none, or if it is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            facts = FileFacts(*(stored[name] for name in FileFacts._fields))
            return _Index(stored["names"], stored["stamps"], facts)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _save(path: Path | None, new: _Index, old: _Index | None) -> None:
    """Add files to the stored index. Without space on the disk, the index stays as it was."""
    if path is None:
        return
    if old is not None:
        # Keep what is known of other files, such as those of another split.
        others = ~np.isin(old.names, new.names)
        new = _Index(
            np.concatenate([new.names, old.names[others]]),
            np.concatenate([new.stamps, old.stamps[others]]),
            FileFacts(*map(np.concatenate, zip(new.facts, old.facts.select(others), strict=True))),
        )
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, names=new.names, stamps=new.stamps, **new.facts._asdict())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _known_facts(
    index: _Index | None, names: NDArray[np.bytes_], stamps: NDArray[np.int64]
) -> tuple[FileFacts, NDArray[np.int64]]:
    """Return facts with those that the index knows, and the numbers of all other files."""
    count = len(names)
    facts = FileFacts.empty(count)
    if index is None or not len(index.names):
        return facts, np.arange(count)
    order = np.argsort(index.names)
    places = np.searchsorted(index.names, names, sorter=order).clip(max=len(order) - 1)
    rows = order[places]
    is_known = (index.names[rows] == names) & (index.stamps[rows] == stamps).all(axis=1)
    for values, stored in zip(facts, index.facts, strict=True):
        values[is_known] = stored[rows[is_known]]
    return facts, (~is_known).nonzero()[0]


def _read_unknown(
    facts: FileFacts,
    unknown: NDArray[np.int64],
    content: StoredContent,
    track: Track,
) -> None:
    """Fill in the facts of files, with several threads: reading and hashing release the GIL."""

    def facts_of(i: int) -> tuple[bytes, bool, tuple[int, int]]:
        image_file = content.read(i)
        digest = hashlib.blake2b(image_file, digest_size=DIGEST_BYTES).digest()
        name = content.names[i].lower().decode("latin-1")
        return digest, *_header_facts(image_file, may_have_more=name.endswith(SEVERAL_PICTURES))

    numbers = unknown.tolist()
    batches = [numbers[i : i + FILES_AT_ONCE] for i in range(0, len(numbers), FILES_AT_ONCE)]
    # A few files are read before anybody could look.
    track = track if len(batches) > FEW_BATCHES else untracked
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in track(batches, "reading files once to identify them", UNIT):
            for i, (digest, has_more, size) in zip(
                batch, threads.map(facts_of, batch), strict=True
            ):
                facts.digests[i] = np.frombuffer(digest, np.uint8)
                facts.has_more[i] = has_more
                facts.sizes[i] = size


def _header_facts(content: bytes, *, may_have_more: bool) -> tuple[bool, tuple[int, int]]:
    """Return whether an image has further pages or frames, and its width and height."""
    # Different decoders raise different exceptions; unreadable images are reported elsewhere.
    try:
        with Image.open(BytesIO(content)) as image:
            has_more = may_have_more and bool(getattr(image, "is_animated", False))
            return has_more, image.size
    except Exception:
        return False, (0, 0)
