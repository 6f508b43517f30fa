"""The cache returns the right epoch or nothing, and a full disk only stops caching."""

import errno
import json
import multiprocessing
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.damage import cut_in_half, flip_bit, folder_content

from distill.storage import files
from distill.training import logit_cache
from distill.training.logit_cache import LogitCache, claimed_bytes, count_stored_epochs
from distill.training.logit_codec import Codec

ROWS = torch.arange(160, dtype=torch.uint8).view(10, 16)
FOUR_CLASSES = Codec(4)
GIGABYTE = 1e9


@pytest.fixture
def log():
    return []


@pytest.fixture
def cache(tmp_path, log):
    """A cache for epochs of ten examples of four classes."""
    return make_cache(tmp_path, log)


def make_cache(folder, log, teacher="t", codec=FOUR_CLASSES):
    return LogitCache(folder / "logits" / "cache", {"teacher": teacher}, 10, codec, log.append)


def write(cache, *epochs, rows=ROWS, limit=GIGABYTE):
    with cache.writing(3, limit):
        for epoch in epochs:
            cache.begin(epoch)
            cache.add(rows)
            cache.end()


def epoch_file(cache, epoch):
    (path,) = cache.path.glob(f"epoch-{epoch:04d}-*.npy")
    return path


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------------------------------- content


def test_an_epoch_is_cached_once_all_of_it_is_written(cache):
    assert cache.read(0) is None and count_stored_epochs(cache.path) == 0
    with cache.writing(2, GIGABYTE):
        cache.begin(1)
        cache.add(ROWS[:6])
        assert cache.read(1) is None
        cache.add(ROWS[6:])
        assert cache.read(1) is None
        cache.end()
    assert torch.equal(cache.read(1), ROWS)
    assert cache.read(0) is None
    assert count_stored_epochs(cache.path) == 1
    # The file is an ordinary array.
    assert np.array_equal(np.load(epoch_file(cache, 1)), ROWS.numpy())


def test_an_epoch_that_is_not_finished_leaves_nothing(cache):
    with cache.writing(2, GIGABYTE):
        cache.begin(0)
        cache.add(ROWS[:5])
        cache.end()
        cache.begin(1)
        cache.add(ROWS)
    assert cache.read(0) is None and cache.read(1) is None
    assert set(folder_content(cache.path)) == {"identity.json", ".lock"}


def test_every_bit_of_a_file_counts(cache, log):
    write(cache, 0)
    path = epoch_file(cache, 0)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert cache.read(0) is None
    assert all(str(path) in line for line in log)
    path.write_bytes(whole)
    assert torch.equal(cache.read(0), ROWS)


DAMAGE = {
    "bit": lambda cache: flip_bit(epoch_file(cache, 0)),
    "cut": lambda cache: cut_in_half(epoch_file(cache, 0)),
    "empty": lambda cache: epoch_file(cache, 0).write_bytes(b""),
    "pickle": lambda cache: np.save(epoch_file(cache, 0), np.array([{}]), allow_pickle=True),
    "deleted": lambda cache: epoch_file(cache, 0).unlink(),
    "identity": lambda cache: cut_in_half(cache.path / "identity.json"),
    "other identity": lambda cache: (cache.path / "identity.json").write_text(
        (cache.path / "identity.json").read_text().replace('"t"', '"u"')
    ),
    "everything": lambda cache: shutil.rmtree(cache.path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_not_read_and_written_again(cache, damage):
    write(cache, 0, 1)
    whole = folder_content(cache.path)
    DAMAGE[damage](cache)
    assert cache.read(0) is None
    write(cache, 0, 1)
    assert torch.equal(cache.read(0), ROWS)
    assert folder_content(cache.path) == whole


@pytest.mark.parametrize("number", [1, 0])
def test_a_file_of_another_epoch_or_cache_is_not_taken(cache, tmp_path, log, number):
    """Not even under the right name, and beside the right identity."""
    other = make_cache(tmp_path / "other", log, teacher="t" if number else "u")
    write(cache, 0)
    write(other, number)
    name = epoch_file(other, number).name.replace(f"epoch-{number:04d}", "epoch-0000")
    epoch_file(cache, 0).unlink()
    shutil.copy(epoch_file(other, number), cache.path / name)
    assert cache.read(0) is None


@pytest.mark.parametrize("change", [{"teacher": "u"}, {"codec": Codec(4, "float16")}])
def test_a_cache_of_another_identity_is_not_read_and_replaced(cache, tmp_path, log, change):
    write(cache, 0, 1)
    other = make_cache(tmp_path, log, **change)
    assert other.read(0) is None
    assert not log
    with other.writing(1, GIGABYTE):
        assert count_stored_epochs(cache.path) == 0
    assert len(log) == 1 and str(cache.path) in log[0]


# -------------------------------------------------------------------------------- other processes


def test_only_one_process_writes(cache, tmp_path, log):
    other = make_cache(tmp_path, log)
    with cache.writing(1, GIGABYTE):
        assert cache.is_writable
        with other.writing(1, GIGABYTE):
            assert not other.is_writable
            other.begin(0)
            other.add(ROWS)
            other.end()
    assert not cache.is_writable
    assert count_stored_epochs(cache.path) == 0 and not log
    with other.writing(1, GIGABYTE):
        assert other.is_writable


def test_a_forked_worker_neither_keeps_the_lock_nor_harms_the_file(cache, tmp_path, log):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with cache.writing(1, GIGABYTE):
        cache.begin(0)
        cache.add(ROWS[:5])
        worker.start()
        cache.add(ROWS[5:])
        cache.end()
    try:
        with make_cache(tmp_path, log).writing(1, GIGABYTE):
            assert torch.equal(cache.read(0), ROWS)
        with FileLock(cache.path / ".lock", blocking=False):
            pass
    finally:
        worker.terminate()
        worker.join()


def _write_and_die(cache, rows):
    with cache.writing(2, GIGABYTE):
        for epoch in (0, 1):
            cache.begin(epoch)
            cache.add(rows[:7])
            if epoch == 1:
                signal.raise_signal(signal.SIGKILL)
            cache.add(rows[7:])
            cache.end()


def test_what_a_killed_process_left_is_cleaned(cache):
    writer = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(cache, ROWS))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert len(list(cache.path.glob(".epoch-0001*"))) == 1
    assert torch.equal(cache.read(0), ROWS) and cache.read(1) is None
    files.write_text_atomically(cache.path / ".identity.json.elsewhere-1", "")
    write(cache, 1)
    assert torch.equal(cache.read(1), ROWS)
    assert not [path for path in cache.path.glob(".*") if path.name != ".lock"]


def test_a_cache_may_be_deleted_while_it_is_read_and_written(cache, log):
    write(cache, 0)
    mapped = cache.read(0)
    with cache.writing(2, GIGABYTE):
        cache.begin(1)
        cache.add(ROWS)
        shutil.rmtree(cache.path)
        cache.end()
        assert not cache.is_writable and len(log) == 1
        cache.begin(2)
        cache.add(ROWS)
        cache.end()
    assert torch.equal(mapped, ROWS)
    write(cache, 1)
    assert torch.equal(cache.read(1), ROWS)


# ------------------------------------------------------------------------------------------ space


def test_what_others_have_claimed_counts_from_the_start(cache, tmp_path, log):
    size = cache.size(3)
    other = LogitCache(tmp_path / "logits" / "other", {}, 10, Codec(4), log.append)
    with cache.writing(3, size):
        assert cache.is_writable
        assert claimed_bytes(cache.path) == size == 3 * (128 + 160)
        with other.writing(3, 2 * size - 1):
            assert not other.is_writable
        assert len(log) == 1 and str(other.path) in log[0]
        assert not other.path.exists()
        with other.writing(3, 2 * size):
            assert other.is_writable
    # Its own claim does not count twice, and grows with the epochs.
    with cache.writing(4, 3 * size):
        assert cache.is_writable
        assert claimed_bytes(cache.path) == cache.size(4)
    with cache.writing(1, 3 * size):
        assert claimed_bytes(cache.path) == cache.size(4)


def test_the_claim_is_as_large_as_the_files_become(cache):
    write(cache, 0, 1, 2)
    sizes = [epoch_file(cache, epoch).stat().st_size for epoch in range(3)]
    assert sum(sizes) == cache.size(3)


def test_damaged_claims_and_unknown_files_count_with_their_size(tmp_path, cache):
    write(cache, 0)
    (cache.path / "identity.json").write_text(json.dumps({"claimed_bytes": "many"}))
    assert claimed_bytes(cache.path) == sum(path.stat().st_size for path in cache.path.iterdir())
    (tmp_path / "file").write_bytes(bytes(100))
    assert claimed_bytes(tmp_path / "file") == 100
    assert claimed_bytes(tmp_path / "nothing") == 0


def test_no_limit_means_no_cache_and_no_message(cache, log):
    with cache.writing(1, 0):
        assert not cache.is_writable
    assert not cache.path.exists() and not log


@pytest.mark.parametrize("when", ["folder", "claim", "open", "write", "rename"])
def test_a_full_disk_stops_caching_with_one_line(cache, log, monkeypatch, when):
    places = {
        "folder": (logit_cache.Path, "mkdir"),
        "claim": (logit_cache, "write_text_atomically"),
        "open": (logit_cache._EpochWriter, "__init__"),
        "write": (logit_cache._EpochWriter, "_write"),
        "rename": (logit_cache._EpochWriter, "publish"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[when], full_disk)
        write(cache, 0, 1)
    assert len(log) == 1
    assert str(cache.path) in log[0] and "No space left" in log[0]
    assert not list(cache.path.glob("*epoch*"))
    write(cache, 0)
    assert torch.equal(cache.read(0), ROWS)
