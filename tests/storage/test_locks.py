"""Only one process writes a study; a killed one does not block it."""

import fcntl
import multiprocessing
import os
import platform
import subprocess
import sys
import time

import pytest

from distill.errors import UserError
from distill.storage import locks
from distill.storage.locks import has_ended, lock_folder, this_kernel, this_process
from distill.storage.run_store import RunStore


def test_a_locked_study_names_its_owner_and_is_free_afterwards(tmp_path):
    store = RunStore(tmp_path)
    with store.lock_study("study"):
        began = time.monotonic()
        with pytest.raises(UserError, match=f"{os.getpid()} on"), store.lock_study("study"):
            pass
        assert time.monotonic() - began < 1
        with store.lock_study("another"):
            pass
    with store.lock_study("study"):
        pass
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with lock_folder(tmp_path / "study"):
        worker.start()
    try:
        with lock_folder(tmp_path / "study"):
            pass
    finally:
        worker.kill()
        worker.join()


@pytest.mark.parametrize("owner", ["ended", "alive", "unknown"])
def test_only_the_lock_of_an_owner_that_has_ended_is_waited_for(tmp_path, owner):
    """Forked data-loader workers of a killed process hold its lock for some seconds."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    numbers = {"ended": process.pid, "alive": os.getpid(), "unknown": ""}
    (tmp_path / ".study.owner").write_text(f"{numbers[owner]} on {this_kernel()}")
    held = (tmp_path / ".study.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.5,))
    worker.start()
    held.close()
    if owner == "ended":
        with lock_folder(tmp_path / "study"):
            assert not worker.is_alive()
    else:
        with pytest.raises(UserError), lock_folder(tmp_path / "study"):
            pass
        assert worker.is_alive()
    worker.join()


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    # The superuser may write anywhere, so the answer is replaced.
    monkeypatch.setattr(locks.os, "access", lambda *_: False)
    with lock_folder(tmp_path / "study"):
        assert not list(tmp_path.iterdir())


def test_a_process_has_ended_only_if_that_is_certain():
    assert not has_ended(this_process())
    assert has_ended(f"99999999 on {this_kernel()}")
    assert has_ended(f"99999999 on {this_kernel()} as a-job")
    assert not has_ended(f"99999999 on {platform.node()}/another-boot")
    assert not has_ended("99999999 on another-machine")
    assert not has_ended("")
    assert not has_ended(f"x on {this_kernel()}")


@pytest.mark.slow
def test_a_second_command_stops_with_status_2(tmp_path):
    from helpers.recipes import TINY, write_recipe

    write_recipe(tmp_path / "tiny.yaml", TINY)
    command = [sys.executable, "-m", "distill", "run", "tiny.yaml"]
    with lock_folder(tmp_path / "runs" / "tiny"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{os.getpid()} on {platform.node()}" in done.stderr
    assert "Traceback" not in done.stderr
