"""The files below a folder, or below a folder within an archive, by their relative paths."""

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distill.data.archives import (
    ARCHIVE_SUFFIXES,
    Archive,
    StoredFile,
    is_archive_name,
    open_archive,
    open_archives,
)
from distill.errors import UserError

# Folders that operating systems, file managers and network storage make for themselves.
SYSTEM_FOLDERS = {
    "__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "__pycache__",
}  # fmt: skip

# The place of a file on a disk may be an unsigned number of 64 bits; the index has signed ones.
LARGEST_PLACE = 2**63 - 1


@dataclass(frozen=True)
class Location:
    """A folder on a disk, or a folder within an archive.

    Attributes:
        path: the folder on the disk, or the archive file.
        opened: the archive, if it is already indexed.
        inside: path of the folder within the archive; empty for all of it.
    """

    path: Path
    opened: Archive | None = None
    inside: str = ""

    @cached_property
    def archive(self) -> Archive | None:
        """Return the content of the archive, which is indexed now; None for a folder on a disk.

        Raises:
            UserError: if the path is a file, but no archive that can be read.
        """
        if self.opened is None and not self.path.is_dir():
            return open_archive(self.path)
        return self.opened

    @classmethod
    def of_archives(cls, folder: Path) -> "Location":
        """Return the location of all archive files in a folder, each a folder of its name."""
        return cls(folder, open_archives(archives_in(folder)))

    def __str__(self) -> str:
        """Return the path, with the folder within an archive."""
        path = posixpath.join(str(self.path), self.inside) if self.inside else str(self.path)
        return readable_name(path)

    @property
    def identity(self) -> tuple[str, str]:
        """Return what two locations share only if they are the same."""
        return str(self.path.resolve()), self.inside

    @property
    def name(self) -> str:
        """Return the name of the folder or the archive."""
        return posixpath.basename(str(self))

    def child(self, name: str) -> "Location | None":
        """Return the folder of that name, or the archive of that name, or None.

        An archive file can be found by its name with or without its ending.
        """
        if name not in self._children:
            self._children[name] = self._find_child(name)
        return self._children[name]

    @cached_property
    def _children(self) -> dict[str, "Location | None"]:
        """Return the children that were found so far: their archives are indexed once."""
        return {}

    def _find_child(self, name: str) -> "Location | None":
        if self.archive is not None:
            inside = posixpath.join(self.inside, name)
            is_folder = inside in self.archive.tree
            return Location(self.path, self.archive, inside) if is_folder else None
        for path in (self.path / name, *(self.path / (name + end) for end in ARCHIVE_SUFFIXES)):
            if path.is_dir() or (path.is_file() and is_archive_name(path.name)):
                return Location(path)
        return None

    @cached_property
    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one, sorted, without ignored ones."""
        return [name for name, is_folder in self._entries if is_folder and not is_ignored(name)]

    @cached_property
    def names(self) -> list[str]:
        """Return the names of all files and folders directly in this one, sorted."""
        return [name for name, _ in self._entries]

    @cached_property
    def _entries(self) -> list[tuple[str, bool]]:
        """Return the name of everything directly in this folder, and whether it is a folder."""
        if self.archive is None:
            return sorted((entry.name, entry.is_dir()) for entry in _scan(self.path))
        folder = self.archive.tree[self.inside]
        names = {**dict.fromkeys(folder.files, False), **dict.fromkeys(folder.folders, True)}
        return sorted(names.items())

    def paths(self) -> Iterator[str]:
        """Yield the relative paths of all files, without those in hidden or system folders."""
        if self.archive is None:
            yield from _walk(self.path)
            return
        for path, _ in _walk_archive(self.archive, self.inside):
            yield path

    def files(self) -> Iterator[StoredFile]:
        """Yield all files, as `paths` does, with their sizes."""
        if self.archive is None:
            for path in _walk(self.path):
                yield stored_file(self.path, path)
            return
        for path, file in _walk_archive(self.archive, self.inside):
            yield file._replace(path=path)

    @property
    def reader(self) -> Callable[[str, int, int, int], bytes]:
        """Return a function of path, part, number and size that returns a file's content."""
        if self.archive is None:
            root = self.path
            return lambda path, part, number, size: (root / path).read_bytes()
        # Keep the open files alone: the list of all files may be long.
        read_part = self.archive.part_readers
        return lambda path, part, number, size: read_part[part](number, size)


def is_ignored(name: str) -> bool:
    """Return whether a file or a folder is hidden, or a system's own.

    A name of dots alone ("...") may be a class.
    """
    is_hidden = name.startswith(".") and bool(name.strip("."))
    return is_hidden or name.lower() in SYSTEM_FOLDERS


def readable_name(name: str) -> str:
    """Return a file's name as text that can be printed and stored.

    Composed and decomposed letters become the same (as in NFC), and bytes that are not UTF-8 become
    escapes, as in ``caf\\xe9``.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def archives_in(folder: Path) -> list[Path]:
    """Return the archive files directly in a folder, sorted."""
    return sorted(
        folder / entry.name
        for entry in _scan(folder)
        if not is_ignored(entry.name) and is_archive_name(entry.name) and entry.is_file()
    )


def _refuse(error: OSError) -> None:
    raise UserError(f"data: cannot list {error.filename}: {error.strerror}")


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        _refuse(error)
        return []


def _walk(root: Path) -> Iterator[str]:
    """Yield the relative paths of all files below a folder.

    Symbolic links are followed, except into a folder that contains the link.

    Raises:
        UserError: if a folder cannot be listed.
    """
    # For each folder that is still to be entered: the real paths of the folders that contain it.
    parents_of: dict[str, frozenset[str]] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real_path = os.path.realpath(folder)
        parents = parents_of.get(os.path.dirname(folder), frozenset())
        if real_path in parents:
            # A link to a folder that contains it would be followed forever.
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not is_ignored(name))
        parents_of[folder] = parents | {real_path} if subfolders else frozenset()
        relative_folder = os.path.relpath(folder, root)
        for name in sorted(files):
            if not is_ignored(name):
                yield name if relative_folder == "." else os.path.join(relative_folder, name)


def _walk_archive(
    archive: Archive, inside: str, below: str = ""
) -> Iterator[tuple[str, StoredFile]]:
    """Yield the relative path and the file of all files below a folder of an archive."""
    folder = archive.tree[posixpath.join(inside, below).rstrip("/")]
    for name in sorted(folder.files):
        if not is_ignored(name):
            yield posixpath.join(below, name), folder.files[name]
    for name in sorted(folder.folders):
        if not is_ignored(name):
            yield from _walk_archive(archive, inside, posixpath.join(below, name))


def stored_file(root: Path, path: str) -> StoredFile:
    """Return a file of a folder, by its relative path."""
    try:
        status = os.stat(os.path.join(root, path))
    except OSError as error:
        problem = error.strerror or str(error)
        if (root / path).is_symlink():
            problem = f"a link to {readable_name(os.readlink(root / path))}: {problem}"
        return StoredFile(path, 0, (0, 0, 0), problem=problem)
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino & LARGEST_PLACE)
    return StoredFile(path, status.st_size, stamp)
