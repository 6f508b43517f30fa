"""Cached logits teach exactly what the live teacher does, on one process and on several."""

import copy
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from helpers.damage import flip_bit, folder_content
from helpers.photos import write_photos
from helpers.recipes import TINY, make_recipe, merge, write_recipe
from helpers.training import plan, same, train_study

from distill.losses import Outputs
from distill.training import cached_teacher
from distill.training.cached_teacher import CachedTeacher
from distill.training.logit_cache import LogitCache, count_stored_epochs
from distill.training.logit_codec import Codec
from distill.training.teacher import Teacher

# One teacher and one student, for as many epochs as are needed to read one and write another.
PAIR = merge(TINY, {"train": {"epochs": 2}})
del PAIR["students"]["alone"]
# The same views and teacher, but another student.
OTHER_STUDENT = "students.distilled.loss.kd.temperature=3"
NO_CACHE = "data.logit_cache_gb=0"


def not_needed(*_):
    raise AssertionError("the teacher was computed")


def train(study_context, *overrides, document=PAIR, out="cached"):
    """Train a study in a folder of its own; return its context and the student's weights."""
    ctx = study_context(make_recipe(document, *overrides), out=out)
    weights = train_study(ctx)
    return ctx, weights[next(name for name in weights if name.startswith("distilled"))]


def cache_folders(ctx):
    return sorted(ctx.store.root.glob("logits/*"))


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        ((), 2**25),
        ((), 1000),
        (("train.accumulate=3",), 2**25),
        (("data.augment={shift: 1, mixup: 0.4}", "train.accumulate=2"), 1000),
        (("data.logit_cache=float16",), 2**25),
        (("data.logit_cache=3",), 1000),
    ],
    ids=["exact", "in parts", "accumulate", "mixup", "float16", "top 3"],
)
def test_cached_logits_teach_what_the_live_teacher_does_to_the_bit(
    study_context, monkeypatch, options, at_once
):
    monkeypatch.setattr(cached_teacher, "MAX_DEVICE_BYTES", at_once)
    live, expected = train(study_context, *options, NO_CACHE, out="live")
    _, other_expected = train(study_context, *options, OTHER_STUDENT, NO_CACHE, out="live")
    assert not same(expected, other_expected)
    assert not cache_folders(live)

    ctx, while_writing = train(study_context, *options)
    assert same(while_writing, expected)
    assert [count_stored_epochs(path) for path in cache_folders(ctx)] == [2]

    monkeypatch.setattr(Teacher, "forward", not_needed)
    _, while_reading = train(study_context, *options, OTHER_STUDENT)
    assert same(while_reading, other_expected)


def test_an_ensemble_is_cached_teacher_by_teacher(study_context, monkeypatch):
    ensemble = merge(
        PAIR,
        {
            "teachers": {"other": {"model": "mlp_16", "loss": {"cross_entropy": {}}}},
            "students": {"distilled": {"teacher": [["hard", "other"]]}},
        },
    )
    _, expected = train(study_context, OTHER_STUDENT, NO_CACHE, document=ensemble, out="live")
    ctx, _ = train(study_context, document=ensemble)
    assert len(cache_folders(ctx)) == 2
    monkeypatch.setattr(Teacher, "forward", not_needed)
    assert same(train(study_context, OTHER_STUDENT, document=ensemble)[1], expected)


def test_a_teacher_whose_features_are_needed_is_not_cached(study_context):
    ctx, _ = train(study_context, "students.distilled.loss.rkd={}")
    assert not cache_folders(ctx)


def test_rounded_logits_make_another_student(study_context):
    def ids(*overrides):
        return {run.arm.name: run.id for run in plan(study_context(make_recipe(PAIR, *overrides)))}

    exact = ids()
    rounded = ids("data.logit_cache=float16")
    top_3 = ids("data.logit_cache=3")
    assert exact == ids("data.logit_cache_gb=1.5")
    assert exact["hard"] == rounded["hard"] == top_3["hard"]
    assert len({exact["distilled"], rounded["distilled"], top_3["distilled"]}) == 3


def test_a_damaged_epoch_is_computed_again_to_the_same_bits(study_context):
    _, expected = train(study_context, OTHER_STUDENT, NO_CACHE, out="live")
    ctx, _ = train(study_context)
    (folder,) = cache_folders(ctx)
    whole = folder_content(folder)
    flip_bit(next(folder.glob("epoch-0001-*")))
    _, weights = train(study_context, OTHER_STUDENT)
    assert same(weights, expected)
    assert folder_content(folder) == whole


def test_a_disk_that_fills_up_stops_the_cache_and_not_the_study(study_context, monkeypatch):
    _, expected = train(study_context, NO_CACHE, out="live")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.training.logit_cache._EpochWriter.add", full_disk)
    ctx, weights = train(study_context)
    assert same(weights, expected)
    assert [count_stored_epochs(path) for path in cache_folders(ctx)] == [0]


def test_a_process_that_decodes_images_does_not_harm_the_cache(tmp_path, study_context):
    write_photos(tmp_path / "photos", 40, (8, 8))
    photos = merge(
        PAIR,
        {
            "data": {"source": "folder", "root": str(tmp_path / "photos"), "resident_gb": 0},
            "train": {"batch_size": 32},
        },
    )
    _, expected = train(study_context, NO_CACHE, document=photos, out="live")
    ctx, weights = train(study_context, document=photos)
    assert ctx.splits.train.images.pool.idle is not None
    assert same(weights, expected)
    (folder,) = cache_folders(ctx)
    cache = LogitCache(folder, {}, 1, Codec(2))
    with cache.writing(1, 1e9):
        assert cache.is_writable


# ---------------------------------------------------------------------------------- one teacher


@pytest.fixture
def teacher():
    return Teacher(torch.nn.Linear(4, 3))


def make_cached(tmp_path, teacher, **options):
    cache = LogitCache(tmp_path / "cache", {}, 12, Codec(3))
    return CachedTeacher(teacher, cache=cache, batch_size=4, **options)


def test_parts_of_a_batch_are_read_from_where_they_were_written(tmp_path, teacher):
    images = torch.randn(12, 4)
    cached = make_cached(tmp_path, teacher)
    assert cached.model is teacher.model
    with cached.cache.writing(1, 1e9):
        cached.begin_epoch(0, torch.device("cpu"), whole=True)
        for step, batch in enumerate(images.split(4)):
            outputs = cached(lambda batch=batch: batch, step=step, first=0, count=4)
            assert torch.equal(outputs.logits, teacher(batch).logits)
        cached.end_epoch()
    cached.begin_epoch(0, torch.device("cpu"), whole=True)
    found = cached(not_needed, step=2, first=1, count=3)
    assert isinstance(found, Outputs)
    torch.testing.assert_close(found.logits, teacher(images[9:12]).logits)


def test_a_part_of_an_epoch_is_not_cached(tmp_path, teacher):
    cached = make_cached(tmp_path, teacher)
    with cached.cache.writing(1, 1e9):
        cached.begin_epoch(0, torch.device("cpu"), whole=False)
        cached(lambda: torch.randn(4, 4), step=2, first=0, count=4)
        cached.end_epoch()
    assert count_stored_epochs(cached.cache.path) == 0


def test_logits_that_grow_when_they_are_decoded_stay_encoded(tmp_path, teacher):
    codec = Codec(1000, "float16", top_k=1)
    rows = codec.encode(torch.randn(10_000, 1000))
    cache = LogitCache(tmp_path / "cache", {}, 10_000, codec)
    with cache.writing(1, 1e9):
        cache.begin(0)
        cache.add(rows)
        cache.end()
    cached = CachedTeacher(teacher, codec=codec, cache=cache, batch_size=100)
    cached.begin_epoch(0, torch.device("cpu"), whole=True)
    # 40 MB decoded, 5 kB encoded.
    assert not cached._stored.is_decoded
    found = cached(not_needed, step=3, first=0, count=100).logits
    assert torch.equal(found, codec.decode(rows[300:400]))


# ------------------------------------------------------------------------------ several processes


class ThreadGroup:
    """Stands in for `Distributed`, with threads as processes."""

    def __init__(self, world_size):
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size)
        self.values = [None] * world_size

    def member(self, rank):
        member = copy.copy(self)
        member.rank = rank
        member.is_single = False
        return member

    def gather_objects(self, value):
        self.barrier.wait(120)
        self.values[self.rank] = value
        self.barrier.wait(120)
        return list(self.values)

    def gather(self, tensor):
        return torch.cat(self.gather_objects(tensor))


@pytest.mark.parametrize("at_once", [2**25, 50], ids=["at the end", "in parts"])
def test_processes_write_and_read_their_views_of_each_batch(
    tmp_path, teacher, monkeypatch, at_once
):
    """Five examples a batch on two processes: examples 0, 2, 4 and examples 1, 3."""
    monkeypatch.setattr(cached_teacher, "MAX_DEVICE_BYTES", at_once)
    images = torch.randn(3, 5, 4)
    group = ThreadGroup(2)

    def work(rank):
        dist = group.member(rank)
        cache = LogitCache(tmp_path / "cache", {}, 15, Codec(3))
        cached = CachedTeacher(teacher, cache=cache, batch_size=5, dist=dist)
        own = images[:, rank::2]
        with cache.writing(1, 1e9) if rank == 0 else nullcontext():
            cached.begin_epoch(0, torch.device("cpu"), whole=True)
            written = [
                cached(lambda step=step: own[step], step=step, first=0, count=3 - rank).logits
                for step in range(3)
            ]
            cached.end_epoch()
            group.barrier.wait(120)
            cached.begin_epoch(0, torch.device("cpu"), whole=True)
            for step in range(3):
                found = cached(not_needed, step=step, first=0, count=3 - rank).logits
                assert torch.equal(found, written[step])
                found = cached(not_needed, step=step, first=1, count=1).logits
                assert torch.equal(found, written[step][1:2])
        return True

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(work, range(2)))
    assert count_stored_epochs(tmp_path / "cache") == 1


@pytest.mark.slow
def test_launched_processes_learn_from_the_cache_what_they_do_from_the_live_teacher(tmp_path):
    document = merge(
        PAIR,
        {
            "train": {"batch_size": 101, "parallelism": "batches"},
            "analysis": {"examples": 0, "num_attacked": 0, "num_views": 0},
        },
    )
    write_recipe(tmp_path / "tiny.yaml", document)
    two_processes = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]

    def run(out, *overrides):
        words = [*two_processes, "-m", "distill", "run", str(tmp_path / "tiny.yaml"), *overrides]
        done = subprocess.run(
            [*words, "--out", str(tmp_path / out)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return sorted((tmp_path / out).glob("logits/*"))

    (folder,) = run("cached")
    assert count_stored_epochs(folder) == 2
    assert run("cached", OTHER_STUDENT) == [folder]
    assert run("live", OTHER_STUDENT, NO_CACHE) == []
    live = folder_content(tmp_path / "live" / "models")
    cached = folder_content(tmp_path / "cached" / "models")
    weights = [name for name in live if name.endswith("model.safetensors")]
    assert len(weights) == 2
    assert all(cached[name] == live[name] for name in weights)
