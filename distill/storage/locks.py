"""Locks between processes, so that only one process writes a study at a time."""

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
    """Hold the lock of a folder, so that no other process writes the folder.

    The lock is a file beside the folder. A process that may not write there takes no lock: it can
    still read stored results.

    Raises:
        UserError: if another process holds the lock.
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
        # Show only "PID on HOST": the boot id means nothing to a user.
        owner = _read(owner_file).partition("/")[0] or "unknown"
        raise UserError(
            f"another process ({owner}) is writing {folder}; wait until it ends, or choose another "
            "--out or another recipe name"
        ) from None
    try:
        clean_stale_temp_files(folder)
        # The owner file is needed only for messages and for the timeout above, so a full disk does
        # no harm here; other writes report it.
        with suppress(OSError):
            owner_file.write_text(this_process())
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def this_process() -> str:
    """Return the name of this process in lock files: "PID on KERNEL"."""
    return f"{os.getpid()} on {this_kernel()}"


def this_kernel() -> str:
    """Return a name of the system within which process numbers are unique.

    The name stands for one boot of one machine, and for one container on it. Two containers may
    have the same host name, but each numbers its own processes.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def has_ended(process: str) -> bool:
    """Return whether a process ran under this kernel and has ended; False if in doubt.

    Args:
        process: what `this_process` returned in that process, with or without ` as NAME` after it;
            an empty text stands for an unknown process.
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
