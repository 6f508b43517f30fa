"""Locks between processes: only one writes a study at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill.errors import UserError
from distill.storage.files import clean_stale_temp_files, is_process_alive

PATIENCE = 15.0
"""Seconds to wait for a lock whose owner has ended."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, a file beside it, so that no other process writes the folder.

    Where this process may not write, there is no lock: what is stored can still be read.

    Raises:
        UserError: if another process has the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        yield
        return
    owner_file = folder.with_name(f".{folder.name}.owner")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        # If the owner was killed, its forked data-loader workers hold the lock for a few more
        # seconds.
        lock.acquire(timeout=PATIENCE if has_ended(_read(owner_file)) else 0)
    except Timeout:
        # "PID on HOST": a person needs no boot id.
        owner = _read(owner_file).partition("/")[0] or "unknown"
        raise UserError(
            f"{folder} is being written by another process ({owner}); wait for it, or use another "
            "--out or another name of the recipe"
        ) from None
    try:
        clean_stale_temp_files(folder)
        # The owner's name is only for messages and for the patience above; a full disk is reported
        # elsewhere.
        with suppress(OSError):
            owner_file.write_text(this_process())
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def this_process() -> str:
    """Return the text by which lock files name this process, "PID on KERNEL"."""
    return f"{os.getpid()} on {this_kernel()}"


def this_kernel() -> str:
    """Return a name for where numbers of processes mean the same.

    That is one boot of one machine, and one container on it: two containers may have the same host
    name, but each has processes of its own.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def has_ended(process: str) -> bool:
    """Return whether a process ran under this kernel and has ended; False if in doubt.

    Args:
        process: as its `this_process` returned it, perhaps with ` as NAME` behind it; the empty
            text is an unknown process.
    """
    number, _, rest = process.partition(" on ")
    kernel, _, _ = rest.partition(" as ")
    if kernel != this_kernel() or not number.isdecimal():
        return False
    return not is_process_alive(int(number))


def _read(path: Path) -> str:
    """Return the text of a file, empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
