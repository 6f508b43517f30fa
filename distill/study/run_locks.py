"""Locks on runs, so that several jobs can train one study and each run is trained by one job.

A lock is a file beside the run, in a folder that all jobs share. The job that creates the file
trains the run. It touches the file regularly, and removes it when the run is stored or has failed.
If a job was killed, other jobs take over its locks. On the same machine they do so at once, since
its process is gone. On another machine they wait until the file has not been touched for `STALE`
seconds, by the clock of the folder. So the shared folder needs no file locks, which some clusters
lack, and the machines need no synchronised clocks. In rare cases two jobs train the same run. That
does no harm: they store the same weights.
"""

import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock, Timeout

from distill.errors import UserError
from distill.storage.files import write_text_atomically
from distill.storage.locks import has_ended, this_process

STALE = 120.0
"""Seconds without a touch after which the job that holds a lock is taken to have ended."""

HEARTBEAT = 15.0
"""Seconds between two touches of a lock."""


class Shard(NamedTuple):
    """One of several jobs that train a study together.

    Attributes:
        index: number of the job, from 0.
        count: number of jobs.
    """

    index: int
    count: int


def parse_shard(text: str) -> Shard:
    """Return the shard that `I/N` stands for, where I counts from 1.

    Raises:
        UserError: if the text has another form, or I is not between 1 and N.
    """
    index, slash, count = text.partition("/")
    is_valid = slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)
    if not is_valid:
        raise UserError(f"--shard {text}: expected I/N with I from 1 to N, as in 3/8")
    return Shard(int(index) - 1, int(count))


class NoLocks:
    """The locks of a job that trains a study alone: it gets every run."""

    shard = Shard(0, 1)
    is_shared = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def acquire(self, run_id: str) -> bool:
        """Return True: no other job can have the run."""
        return True

    def release(self, run_id: str) -> None:
        """Do nothing."""

    def mark_failed(self, run_id: str, why: str) -> None:
        """Do nothing: nobody else needs to know."""

    def failure_of(self, run_id: str) -> str | None:
        """Return None: no other job can have failed."""
        return None

    def is_alive(self, run_id: str) -> bool:
        """Return False: there is no other job."""
        return False


class RunLocks:
    """The locks of one of several jobs, in a folder that they share.

    Attributes:
        folder: the folder of the runs.
        shard: the number of this job among all jobs.
        is_shared: True; other jobs may train runs, too.
    """

    is_shared = True

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder = folder
        self.shard = shard
        # Two jobs may run in one process, and two containers may have equal process numbers.
        self._owner = f"{this_process()} as {uuid.uuid4().hex}"
        self._held: set[Path] = set()
        # For each lock of another job, its last touch at the time when this job first saw it.
        self._first_seen: dict[Path, float] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._touch_regularly, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for path in list(self._held):
            self._remove(path)

    def acquire(self, run_id: str) -> bool:
        """Try to lock a run for this job.

        Returns:
            False if another job that is alive has the run, or if the run has failed.
        """
        path = self._lock_path(run_id)
        if path in self._held:
            return True
        if self.failure_of(run_id) is not None:
            return False
        if not (self._create(path) or self._take_over(path)):
            return False
        self._held.add(path)
        return True

    def release(self, run_id: str) -> None:
        """Unlock a run that is stored or has failed, if this job has locked it."""
        self._remove(self._lock_path(run_id))

    def mark_failed(self, run_id: str, why: str) -> None:
        """Tell the other jobs that a run cannot be trained, so that they do not try."""
        write_text_atomically(self._failure_path(run_id), why)

    def failure_of(self, run_id: str) -> str | None:
        """Return why a run cannot be trained, or None if no job has marked it as failed."""
        try:
            return self._failure_path(run_id).read_text("utf-8")
        except FileNotFoundError:
            return None

    def is_alive(self, run_id: str) -> bool:
        """Return whether another job has touched the lock of a run since this job first saw it."""
        path = self._lock_path(run_id)
        touched = _touched(path)
        if touched is None:
            return False
        return touched != self._first_seen.setdefault(path, touched)

    def _lock_path(self, run_id: str) -> Path:
        return self.folder / f".{run_id}.lock"

    def _failure_path(self, run_id: str) -> Path:
        return self.folder / f".{run_id}.failed"

    def _create(self, path: Path) -> bool:
        """Create a lock file; of several jobs that try, one succeeds."""
        try:
            with path.open("x") as file:
                file.write(self._owner)
        except FileExistsError:
            return False
        return True

    def _take_over(self, path: Path) -> bool:
        """Replace the lock of a job that has ended.

        If several jobs try, only one succeeds, provided that the folder supports file locks.
        Otherwise two jobs may train the same run.
        """
        if not self._is_stale(path):
            return False
        lock = FileLock(self.folder / ".takeover.lock")
        # A folder without file locks raises an error, or with some versions of filelock a timeout.
        with suppress(Timeout, OSError, NotImplementedError):
            lock.acquire(timeout=HEARTBEAT)
        try:
            # Another job may have been faster.
            if not self._is_stale(path):
                return False
            write_text_atomically(path, self._owner)
            return True
        finally:
            lock.release()

    def _is_stale(self, path: Path) -> bool:
        """Return whether the job that has a lock has ended."""
        try:
            owner = path.read_text()
        except OSError:
            return False
        touched = _touched(path)
        if touched is None:
            return False
        return has_ended(owner) or self._folder_time() - touched > STALE

    def _folder_time(self) -> float:
        """Return the time by the clock of the machine that stores the folder."""
        probe = self.folder / f".clock.{uuid.uuid4().hex}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def _remove(self, path: Path) -> None:
        """Remove a lock of this job, unless another has taken it over meanwhile."""
        if path not in self._held:
            return
        self._held.discard(path)
        with suppress(OSError):
            if path.read_text() == self._owner:
                path.unlink()

    def _touch_regularly(self) -> None:
        """Touch the locks regularly, which shows other jobs that this one is alive."""
        while not self._ended.wait(HEARTBEAT):
            for path in list(self._held):
                with suppress(OSError):
                    os.utime(path)


def _touched(path: Path) -> float | None:
    """Return when a file was last touched, by its folder's clock; None if it does not exist."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def clear_failures(folder: Path) -> None:
    """Remove the marks of failed runs, so that these runs are tried again."""
    for path in folder.glob(".*.failed"):
        path.unlink(missing_ok=True)
