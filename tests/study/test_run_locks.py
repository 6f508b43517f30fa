"""Each run is trained by one of several jobs; what a killed job left is taken over."""

import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from helpers.damage import folder_content
from helpers.recipes import TINY, make_recipe, merge, write_recipe

from distill import run_study
from distill.errors import UserError
from distill.storage.locks import this_kernel
from distill.storage.run_store import RunStore
from distill.study import run_locks
from distill.study.run_locks import NoLocks, RunLocks, Shard, clear_failures, parse_shard

NO_ANALYSIS = merge(
    TINY, {"train": {"epochs": 2}, "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0}}
)


def make_jobs(folder, count=2):
    return [RunLocks(folder, Shard(index, count)) for index in range(count)]


def process_that_has_ended() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("text", "shard"), [("1/1", (0, 1)), ("3/8", (2, 8))])
def test_shards_are_counted_from_one(text, shard):
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1.0/2"])
def test_other_texts_are_no_shard(text):
    with pytest.raises(UserError, match="I/N"):
        parse_shard(text)


def test_a_job_alone_gets_every_run():
    with NoLocks() as locks:
        assert locks.acquire("run") and locks.acquire("run")
        locks.mark_failed("run", "why")
        assert locks.failure_of("run") is None
        locks.release("run")
        assert not locks.is_alive("run")
        assert locks.shard == Shard(0, 1) and not locks.is_shared


def test_one_job_has_a_run_until_it_releases_it(tmp_path):
    one, two = make_jobs(tmp_path)
    assert one.is_shared and two.shard == Shard(1, 2)
    assert one.acquire("run") and one.acquire("run")
    assert not two.acquire("run")
    two.release("run")
    assert not two.acquire("run")
    one.release("run")
    assert two.acquire("run") and not one.acquire("run")


def test_a_job_releases_all_its_runs_when_it_ends(tmp_path):
    with RunLocks(tmp_path, Shard(0, 2)) as locks:
        assert locks.acquire("a") and locks.acquire("b")
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_failed_is_not_tried_by_others_until_failures_are_cleared(tmp_path):
    one, two = make_jobs(tmp_path)
    assert one.acquire("run")
    one.mark_failed("run", "its loss is infinite\n∞")
    one.release("run")
    assert two.failure_of("run") == "its loss is infinite\n∞"
    assert two.failure_of("other") is None
    assert not two.acquire("run")
    clear_failures(tmp_path)
    assert two.acquire("run")


def test_the_lock_of_an_ended_process_of_this_machine_is_taken_over_at_once(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    (tmp_path / ".run.lock").write_text(f"{process_that_has_ended()} on {this_kernel()}")
    assert job.acquire("run")
    assert not make_jobs(tmp_path, 1)[0].acquire("run")


@pytest.mark.parametrize(
    "owner",
    ["1 on another-machine", f"{os.getpid()} on here", ""],
    ids=["another machine", "this machine", "nobody"],
)
def test_another_lock_is_taken_over_when_it_has_not_been_touched_for_two_minutes(tmp_path, owner):
    (job,) = make_jobs(tmp_path, 1)
    path = tmp_path / ".run.lock"
    path.write_text(owner)
    now = path.stat().st_mtime
    os.utime(path, (now - 110, now - 110))
    assert not job.acquire("run")
    # A job that starts now takes it at once: the age is told by the folder's clock alone.
    os.utime(path, (now - 121, now - 121))
    assert job.acquire("run")


def test_a_lock_that_was_taken_over_is_left_to_its_new_owner(tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    assert job.acquire("run")
    (tmp_path / ".run.lock").write_text("1 on another-machine")
    job.release("run")
    assert (tmp_path / ".run.lock").exists()


def test_a_job_is_alive_once_its_lock_was_seen_to_be_touched(tmp_path):
    one, two = make_jobs(tmp_path)
    assert not two.is_alive("run")
    assert one.acquire("run")
    assert not two.is_alive("run")
    os.utime(tmp_path / ".run.lock", (5, 5))
    assert two.is_alive("run")
    one.release("run")
    assert not two.is_alive("run")


def test_a_job_touches_its_locks_while_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(run_locks, "HEARTBEAT", 0.01)
    with RunLocks(tmp_path, Shard(0, 2)) as locks:
        assert locks.acquire("run")
        path = tmp_path / ".run.lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_of_many_jobs_that_want_a_run_one_gets_it(tmp_path):
    """Again and again, from eight threads at once, with and without a lock of an ended process."""
    ended = f"{process_that_has_ended()} on {this_kernel()}"
    for turn in range(20):
        run_id = str(turn)
        if turn % 2:
            (tmp_path / f".{run_id}.lock").write_text(ended)
        successes = []
        start = threading.Barrier(8)

        def acquire(job, run_id=run_id, successes=successes, start=start):
            start.wait()
            successes.append(job.acquire(run_id))

        threads = [threading.Thread(target=acquire, args=(job,)) for job in make_jobs(tmp_path, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(successes) == [False] * 7 + [True]


def _acquire_and_sleep(folder, ready):
    with RunLocks(folder, Shard(0, 2)) as locks:
        locks.acquire("run")
        ready.set()
        time.sleep(60)


def test_a_killed_job_is_noticed_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=_acquire_and_sleep, args=(tmp_path, ready))
    process.start()
    ready.wait(30)
    (job,) = make_jobs(tmp_path, 1)
    assert not job.acquire("run")
    process.kill()
    process.join()
    assert job.acquire("run")


@pytest.mark.slow
def test_a_study_goes_on_with_the_runs_of_a_killed_job(tmp_path, study_context):
    from helpers.training import plan

    recipe = make_recipe(NO_ANALYSIS)
    ended = f"{process_that_has_ended()} on {this_kernel()}"
    (tmp_path / "runs" / "models").mkdir(parents=True)
    for run in plan(study_context(recipe)):
        (tmp_path / "runs" / "models" / f".{run.id}.lock").write_text(ended)
    results = run_study(recipe, tmp_path / "runs", shard=Shard(1, 3))
    assert len(results.runs) == 4


@pytest.mark.slow
def test_a_damaged_run_is_trained_again_in_spite_of_an_old_lock(tmp_path):
    recipe = make_recipe(NO_ANALYSIS)
    out = tmp_path / "runs"
    run_id = run_study(recipe, out).runs[0].id
    store = RunStore(out)
    weights = store.folder(run_id) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"x")
    lock = out / "models" / f".{run_id}.lock"
    lock.write_text("77 on another-machine")
    os.utime(lock, (1000, 1000))
    run_study(recipe, out, shard=Shard(0, 2))
    assert store.damage(run_id) is None
    assert weights.read_bytes() == whole


@pytest.mark.slow
def test_two_jobs_train_each_run_once_and_one_writes_the_study(tmp_path):
    """Both at once on one folder, to the weights of a job alone."""
    write_recipe(tmp_path / "tiny.yaml", NO_ANALYSIS)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "distill", "run", "tiny.yaml", "--shard", f"{number}/2"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    logs = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], logs
    # One line for each cohort, with its number of runs and epochs.
    cohorts = re.findall(r", seed 0, (\d+) runs?: 2 epochs", "".join(logs))
    assert sum(int(number) for number in cohorts) == 4

    alone = run_study(make_recipe(NO_ANALYSIS), tmp_path / "alone")
    shared = folder_content(tmp_path / "runs" / "models")
    for run in alone.runs:
        weights = tmp_path / "alone" / "models" / run.id / "model.safetensors"
        assert shared[f"{run.id}/model.safetensors"] == weights.read_bytes()
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    left = [name for name in shared if name.startswith(".") and name != ".takeover.lock"]
    assert not left
