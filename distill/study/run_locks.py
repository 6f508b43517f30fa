"""Runs that several jobs share out, on a folder that they share: each run is claimed by one of them.

A claim is a file beside the run, made by the first job and touched while that job lives. It needs neither locks nor
clocks that agree: its age is told by the folder's own clock. A job that was killed leaves claims that age (those of
this machine are seen at once), and another takes them over; should two ever train one run, they store the same weights.
"""

import os
import platform
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from distill.errors import UserError
from distill.storage.files import alive, write_text_atomically

STALE = 120.0  # seconds after which a claim that is not touched is of a job that is gone
BEAT = 15.0  # seconds between two touches


class Shard(NamedTuple):
    """One of several jobs: `index` counts from 0."""

    index: int
    count: int


def parse_shard(text: str) -> Shard:
    """What ``I/N`` means, pluralize from 1; UserError if it is no such thing."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard {text}: expected I/N with I from 1 to N, as in 3/8")
    return Shard(int(first) - 1, int(second))


class RunLocks:
    """What this job has claimed, in a folder."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.folder, self.shard = folder, shard
        self.token = f"{os.getpid()} on {_kernel()} as {uuid.uuid4().hex}"
        self.held: set[Path] = set()
        self.seen: dict[Path, float] = {}  # when others' claims were touched, as first looked at
        self._ended = threading.Event()

    def __enter__(self) -> "RunLocks":
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for path in list(self.held):
            self._drop(path)

    def take(self, run_id: str) -> bool:
        """Claim a run; False if another job that lives has it, or it has failed."""
        path = self._path(run_id)
        if path in self.held:
            return True
        if self.failure(run_id):
            return False
        try:
            with path.open("x") as file:
                file.write(self.token)
        except FileExistsError:
            if not (self._is_stale(path) and self._take_over(path)):
                return False
        self.held.add(path)
        return True

    def release(self, run_id: str) -> None:
        """Give a claim back, of a run that is stored or has failed."""
        self._drop(self._path(run_id))

    def fail(self, run_id: str, why: str) -> None:
        """Tell the other jobs that a run cannot be trained, so that each does not try."""
        write_text_atomically(self._path(run_id, "failed"), why)

    def failure(self, run_id: str) -> str | None:
        """Why a run cannot be trained, if a job has found that."""
        try:
            return self._path(run_id, "failed").read_text("utf-8")
        except FileNotFoundError:
            return None

    def is_alive(self, run_id: str) -> bool:
        """Whether the claim of another job has been touched since this was first asked."""
        path = self._path(run_id)
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return False
        return touched != self.seen.setdefault(path, touched)

    def _path(self, run_id: str, kind: str = "claim") -> Path:
        return self.folder / f".{run_id}.{kind}"

    def _drop(self, path: Path) -> None:
        if path in self.held:
            self.held.discard(path)
            with suppress(OSError):
                if (
                    path.read_text() == self.token
                ):  # else this job slept for so long that another took it over
                    path.unlink()

    def _is_stale(self, path: Path) -> bool:
        """Whether nobody has touched a claim for long, or its process was of this kernel and is gone."""
        try:
            number, _, rest = path.read_text().partition(" on ")
            gone = (
                rest.startswith(f"{_kernel()} as ")
                and number.isdecimal()
                and not alive(int(number))
            )
            return gone or self._now() - path.stat().st_mtime > STALE
        except OSError:
            return False

    def _take_over(self, path: Path) -> bool:
        """Replace a stale claim; of several jobs that try at once, one succeeds: the claim is never away meanwhile."""
        turn = path.with_name(f"{path.name}.turn")
        try:
            turn.touch(exist_ok=False)
        except FileExistsError:
            if self._is_stale(turn):  # left by a job that was killed just here
                turn.unlink(missing_ok=True)
            return False
        try:
            if not self._is_stale(path):
                return False
            write_text_atomically(path, self.token)
            return True
        finally:
            turn.unlink(missing_ok=True)

    def _now(self) -> float:
        """The time by the clock of the folder's machine."""
        probe = self.folder / f".clock.{platform.node()}-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for path in list(self.held):
                with suppress(OSError):
                    os.utime(path)


def _kernel() -> str:
    """Where numbers of processes mean the same: one boot of one machine, and one container on it."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return "/".join(parts)


def clear_failures(folder: Path) -> None:
    """Remove what jobs noted of runs that could not be trained, so that they are tried again."""
    for path in folder.glob(".*.failed"):
        path.unlink(missing_ok=True)
