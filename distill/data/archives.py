"""Tar and zip archives, indexed once, so that any file in them can be read by its number.

The index of a tar file needs one pass over its headers. A compressed tar file is first unpacked
into a temporary file without a name, which the system removes when the process ends.
"""

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

from distill.errors import UserError

ARCHIVE_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip",
)  # fmt: skip

# What the first bytes of a file say about its kind.
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
DECOMPRESSORS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}

# The exceptions that damaged archives cause in the libraries that read them.
ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
)  # fmt: skip


class StoredFile(NamedTuple):
    """A file in a folder or an archive.

    Attributes:
        path: its path relative to the folder or archive, with slashes. Bytes that are not UTF-8
            are surrogate escapes, as in `os.fsdecode`.
        size: its size in bytes.
        stamp: modification time, change time and place on the disk. If they are unchanged, then so
            is the content.
        part: which file of an archive of several files holds it.
        number: where it is in that file: an offset in a tar file, a position in the list of a zip
            file.
        problem: why it cannot be read; empty if it can.
    """

    path: str
    size: int
    stamp: tuple[int, int, int]
    part: int = 0
    number: int = 0
    problem: str = ""


class _Part(NamedTuple):
    """One opened archive file: its files, its folders, and a function (number, size) → content."""

    files: dict[str, StoredFile]
    folders: set[str]
    read: Callable[[int, int], bytes]


@dataclass
class ArchiveFolder:
    """What is directly in a folder of an archive.

    Attributes:
        files: the files by their names.
        folders: the names of the folders.
    """

    files: dict[str, StoredFile] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Archive:
    """The content of an archive file, or of several that belong together.

    Attributes:
        files: all files; of several with one path, the last.
        folders: paths of the folders that the archive lists, which may be empty.
        part_readers: for each archive file a function (number, size) that returns a file's content.
    """

    files: list[StoredFile]
    folders: set[str]
    part_readers: list[Callable[[int, int], bytes]]

    @cached_property
    def tree(self) -> dict[str, ArchiveFolder]:
        """Return every folder by its path; the archive itself has the path ""."""
        tree = {"": ArchiveFolder()}
        for path in self.folders:
            _add_folder(tree, path)
        for file in self.files:
            folder, _, name = file.path.rpartition("/")
            _add_folder(tree, folder)
            tree[folder].files[name] = file
        return tree


def _add_folder(tree: dict[str, ArchiveFolder], path: str) -> None:
    """Add a folder to a tree, with all folders that contain it."""
    while path not in tree:
        tree[path] = ArchiveFolder()
        parent, _, name = path.rpartition("/")
        _add_folder(tree, parent)
        tree[parent].folders.add(name)
        path = parent


def is_archive_name(name: str) -> bool:
    """Return whether a file name has the ending of an archive that can be read."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_stem(name: str) -> str:
    """Return the name of an archive without its ending: ``photos`` for ``photos.tar.gz``."""
    endings = [ending for ending in ARCHIVE_SUFFIXES if name.lower().endswith(ending)]
    return name[: -max(map(len, endings))] if endings else name


def open_archive(path: Path) -> Archive:
    """Index an archive file.

    Raises:
        UserError: if it is damaged, or of a kind that cannot be read.
    """
    part = _open_part(path, 0)
    return Archive(list(part.files.values()), part.folders, [part.read])


def open_archives(paths: Sequence[Path]) -> Archive:
    """Index several archive files as one: each becomes a folder with the name of the file.

    The name is the path below the folder that contains all of them.

    Raises:
        UserError: if one is damaged, or of a kind that cannot be read.
    """
    files: list[StoredFile] = []
    folders: set[str] = set()
    part_readers = []
    root = os.path.commonpath([path.parent for path in paths])
    for number, path in enumerate(paths):
        part = _open_part(path, number)
        folder = archive_stem(path.relative_to(root).as_posix())
        files += [file._replace(path=f"{folder}/{file.path}") for file in part.files.values()]
        folders |= {folder} | {f"{folder}/{name}" for name in part.folders}
        part_readers.append(part.read)
    return Archive(files, folders, part_readers)


def _open_part(path: Path, part: int) -> _Part:
    try:
        with path.open("rb") as file:
            first_bytes = file.read(8)
        for signature, kind in OTHER_ARCHIVES.items():
            if first_bytes.startswith(signature):
                raise UserError(
                    f"data: {path} is a {kind} archive, which cannot be read; unpack it, and "
                    "write data.source=folder with the folder as data.root"
                )
        if first_bytes.startswith(ZIP_SIGNATURES):
            return _open_zip(path, part)
        for signature, decompress in DECOMPRESSORS.items():
            if first_bytes.startswith(signature):
                return _open_tar(path, part, decompress)
        return _open_tar(path, part, None)
    except ARCHIVE_ERRORS as error:
        message = (
            f"data: cannot open {path} ({error or type(error).__name__}): it is incomplete, "
            "damaged, or no archive; download or write it again"
        )
        if getattr(error, "errno", None) == errno.ENOSPC:
            message = (
                f"data: no space to unpack {path}; set TMPDIR to a folder on a disk with more space"
            )
        raise UserError(message) from None


def _clean(path: str) -> str:
    """Return a path of an archive without ``./`` at its beginning, and without ``..``."""
    return posixpath.normpath("/" + path).lstrip("/")


def _file_stamp(status: os.stat_result, number: int) -> tuple[int, int, int]:
    """Return the stamp of a file at a place in an archive."""
    position = hash((status.st_ino, status.st_size, number))
    return status.st_mtime_ns, status.st_ctime_ns, position


# ---------------------------------------------------------------------------------------------- tar


def _open_tar(path: Path, part: int, decompress: Callable[[Path], IO[bytes]] | None) -> _Part:
    """Index a tar file, which is first unpacked if it is compressed."""
    file = tempfile.TemporaryFile() if decompress else path.open("rb")  # noqa: SIM115
    try:
        if decompress:
            with decompress(path) as compressed:
                shutil.copyfileobj(compressed, file, length=1 << 20)
            file.flush()
            file.seek(0)
        files, folders = _index_tar(path, part, file)
    except BaseException:
        file.close()
        raise

    def read(offset: int, size: int) -> bytes:
        # This does not move the file's position, which forked processes share.
        return os.pread(file.fileno(), size, offset)

    # The file is open as long as somebody can read from it.
    weakref.finalize(read, file.close)
    return _Part(files, folders, read)


def _index_tar(path: Path, part: int, file: IO[bytes]) -> tuple[dict[str, StoredFile], set[str]]:
    """Return the files and the folders of a tar file; `file` is its uncompressed content."""
    status = path.stat()
    members: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()
    for name, member, offset in _tar_members(file):
        if member.isdir():
            folders.add(name)
        elif member.isreg():
            members[name] = (offset, member.size)
        elif member.issym():
            links[name] = _clean(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            links[name] = _clean(member.linkname)

    files = {}
    for name, (offset, size) in members.items():
        files[name] = StoredFile(name, size, _file_stamp(status, offset), part, offset)
    stored = list(files)
    with_files = {parent for name in stored for parent in _parents(name)}
    for name, target in links.items():
        found = _follow(target, links)
        if found in files:
            files[name] = files[found]._replace(path=name)
        elif found in with_files and not found.startswith(f"{name}/"):
            # A link to a folder of the archive.
            for file in (file for file in stored if file.startswith(f"{found}/")):
                linked = name + file.removeprefix(found)
                files[linked] = files[file]._replace(path=linked)
        else:
            problem = f"a link to {target}, which {path} does not have"
            files[name] = StoredFile(name, 0, _file_stamp(status, 0), part, problem=problem)
    return files, folders - {""}


def _parents(path: str) -> Iterator[str]:
    """Yield the paths of all folders that contain a path."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _follow(target: str, links: dict[str, str]) -> str:
    """Return the path at the end of a chain of links."""
    for _ in range(len(links)):
        if target not in links:
            break
        target = links[target]
    return target


def _tar_members(
    file: IO[bytes], folder: str = "", start: int = 0
) -> Iterator[tuple[str, tarfile.TarInfo, int]]:
    """Yield the path, the header and the offset of every member of a tar file.

    A tar file in it, such as those of ImageNet's classes, is a folder with the name of the file.

    Args:
        file: the tar file, at its beginning.
        folder: path of the tar file if it is in another one.
        start: offset of the tar file in the outermost one.

    Raises:
        tarfile.ReadError: if the file is damaged.
    """
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            # tarfile keeps every header in memory, for methods that are not used here.
            tar.members.clear()
            name = _clean(f"{folder}/{member.name}")
            offset = start + member.offset_data
            if member.isreg() and name.lower().endswith(".tar"):
                inner = tar.extractfile(member)
                yield from _tar_members(inner, archive_stem(name), offset)
            else:
                yield name, member, offset
        end = tar.offset
    # Readers mistake a damaged header for the end of the file, and ignore the rest of it.
    file.seek(end)
    if file.read(512).strip(b"\0"):
        raise tarfile.ReadError(f"it is damaged at byte {start + end}")


# ---------------------------------------------------------------------------------------------- zip


class _ZipReader:
    """Reads files of a zip archive, with a file handle of its own in every process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = 0
        self.archive: zipfile.ZipFile | None = None

    def opened(self) -> zipfile.ZipFile:
        """Return the archive, opened by this process: processes must not share a position."""
        if self.archive is None or self.process != os.getpid():
            self.archive = zipfile.ZipFile(self.path)
            self.process = os.getpid()
        return self.archive

    def read(self, number: int, _size: int) -> bytes:
        """Return the content of a file by its position in the archive's list."""
        archive = self.opened()
        return archive.read(archive.infolist()[number])


def _open_zip(path: Path, part: int) -> _Part:
    """Index a zip file."""
    reader = _ZipReader(path)
    status = path.stat()
    files: dict[str, StoredFile] = {}
    folders: set[str] = set()
    for number, info in enumerate(reader.opened().infolist()):
        name = _clean(_zip_name(info))
        if info.is_dir():
            folders.add(name)
            continue
        problem = ""
        if info.flag_bits & 1:
            problem = f"it is encrypted in {path}"
        elif stat.S_ISLNK(info.external_attr >> 16):
            problem = f"a link in {path}; store the file itself (zip without -y)"
        stamp = _file_stamp(status, number)
        files[name] = StoredFile(name, info.file_size, stamp, part, number, problem)
    return _Part(files, folders - {""}, reader.read)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the path of a file in a zip archive, with slashes."""
    name = info.orig_filename
    is_utf8 = info.flag_bits & 0x800
    if not is_utf8:
        # zipfile reads all other names as CP437. Most programs write the bytes of their own system.
        name = os.fsdecode(name.encode("cp437", "surrogateescape"))
    made_on_windows = info.create_system == 0
    if made_on_windows and "/" not in name:
        name = name.replace("\\", "/")
    return name
