"""The logit store: what is stored teaches what the live teacher does, bit for bit; what is wrong is made again."""

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.photos import write_photos as photos
from helpers.training import plan, same, train_generation
from hypothesis import given
from hypothesis import strategies as st

from distill.study import scheduler
from distill.study.cache_plan import plan_logit_cache, teacher_logits_identity
from distill.study.dry_run import dry_run
from distill.study.plan import make_cohorts
from distill.training.cached_teacher import CachedTeacher
from distill.training.logit_cache import DIGEST, PAGE, LogitCache, count_stored_epochs
from distill.training.logit_codec import Codec, choose_codec
from distill.training.teacher import Teacher


def split(runs):
    """The teachers, and the runs that learn from them."""
    return [r for r in runs if r.depth == 0], [r for r in runs if r.depth == 1]


def no_answer(*_):
    raise AssertionError("the teacher was asked")


# --------------------------------------------------------------------------------------------------- the codec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@given(st.sampled_from(list(DTYPES)), st.integers(1, 5), st.integers(2, 300), st.integers(0, 9))
def test_answers_in_their_own_precision_come_back_to_the_bit(dtype, count, classes, seed):
    logits = (torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 20).to(
        DTYPES[dtype]
    )
    codec = Codec(classes, dtype)
    rows = codec.encode(logits)
    assert rows.shape == (count, codec.width) and rows.dtype == torch.uint8
    assert torch.equal(codec.decode(rows), logits.float())


@given(st.integers(1, 4), st.integers(2, 300), st.data())
def test_of_the_largest_the_values_are_kept_and_of_the_others_the_mass(count, classes, data):
    top, seed = data.draw(st.integers(1, classes - 1)), data.draw(st.integers(0, 9))
    logits = (
        torch.randn(
            count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        * 5
    )
    codec = Codec(classes, "float16", top)
    rows = codec.encode(logits.float())
    assert rows.shape == (count, codec.width)
    found = codec.decode(rows[:, :]).double()
    for one, original in zip(found, logits, strict=True):
        largest = original.argsort(descending=True)
        assert torch.allclose(one[largest[:top]], original[largest[:top]], rtol=2**-10, atol=1e-3)
        rest = one[largest[top:]]
        assert (rest == rest[0]).all()
        assert rest.logsumexp(0).item() == pytest.approx(
            original[largest[top:]].logsumexp(0).item(), rel=2e-3, abs=2e-3
        )


def test_values_beyond_float16_become_its_largest():
    codec = Codec(3, "float16")
    assert codec.decode(codec.encode(torch.tensor([[1e6, -1e6, 1.0]]))).tolist() == [
        [65504.0, -65504.0, 1.0]
    ]


# --------------------------------------------------------------------------------------------- stored as live


@pytest.mark.parametrize("at_once", [2**25, 1000], ids=["epochs at once", "steps at once"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.accumulate=3",),
        ("data.augment={shift: 1, mixup: 0.4}",),
        ("data.logit_cache=float16",),
        ("data.logit_cache=3",),
    ],
)
def test_stored_answers_teach_what_the_live_teacher_does_bit_for_bit(
    tiny, study_context, monkeypatch, options, at_once
):
    monkeypatch.setattr("distill.logits.AT_ONCE", at_once)
    live = study_context(tiny, *options, "data.logit_cache_gb=0", out="live")
    for phase in split(plan(live)):
        expected = train_generation(live, phase)
    assert not list(live.store.root.glob("logits/*"))

    ctx = study_context(tiny, *options)
    teachers, students = split(plan(ctx))
    assert [r.id for r in students] == [r.id for r in split(plan(live))[1]]
    train_generation(ctx, teachers)
    assert same(train_generation(ctx, students)["distilled"], expected["distilled"]), (
        "while they are written"
    )

    changed = study_context(tiny, *options, "students.distilled.loss.kd.temperature=3")
    fresh = study_context(
        tiny,
        *options,
        "students.distilled.loss.kd.temperature=3",
        "data.logit_cache_gb=0",
        out="live",
    )
    expected = train_generation(fresh, split(plan(fresh))[1])
    monkeypatch.setattr(Teacher, "forward", no_answer)
    assert same(
        train_generation(changed, split(plan(changed))[1])["distilled"], expected["distilled"]
    ), "when they are read"


def test_an_ensemble_is_stored_teacher_by_teacher(tiny, study_context, monkeypatch):
    options = (
        "teachers.other={model: mlp_16, loss: {cross_entropy: {smoothing: 0.1}}}",
        "students.distilled.teacher=[[hard, other]]",
    )
    ctx = study_context(tiny, *options)
    for phase in split(plan(ctx)):
        train_generation(ctx, phase)
    assert len(list(ctx.store.root.glob("logits/*.logits"))) == 2
    new = (*options, "students.distilled.loss.kd.temperature=3")
    live = study_context(tiny, *new, "data.logit_cache_gb=0", out="live")
    for phase in split(plan(live)):
        expected = train_generation(live, phase)
    monkeypatch.setattr(Teacher, "forward", no_answer)
    again = study_context(tiny, *new)
    found = train_generation(again, split(plan(again))[1])
    assert len(found) == 1 and all(same(found[name], expected[name]) for name in found)


def test_rounded_answers_are_part_of_what_a_student_is(tiny, study_context):
    def ids(*options):
        return {r.arm.name: r.id for r in plan(study_context(tiny, *options))}

    exact, rounded, few = ids(), ids("data.logit_cache=float16"), ids("data.logit_cache=3")
    assert exact == ids("data.logit_cache_gb=1.5")
    assert exact["hard"] == rounded["hard"] == few["hard"]
    assert len({names["distilled"] for names in (exact, rounded, few)}) == 3


def test_a_teacher_that_is_looked_into_is_asked(tiny, study_context):
    ctx = study_context(tiny, "students.distilled.loss.rkd={}")
    for phase in split(plan(ctx)):
        train_generation(ctx, phase)
    assert not list(ctx.store.root.glob("logits/*"))


# ------------------------------------------------------------------------------------------------ what is wrong


@pytest.fixture
def trained(tiny, study_context):
    """A study whose answers are stored: its ctx, the file, and what a new arm's weights must be."""
    live = study_context(
        tiny, "students.distilled.loss.kd.temperature=3", "data.logit_cache_gb=0", out="live"
    )
    for phase in split(plan(live)):
        expected = (
            train_generation(live, phase)["distilled"]
            if phase[0].depth
            else train_generation(live, phase)
        )
    ctx = study_context(tiny)
    for phase in split(plan(ctx)):
        train_generation(ctx, phase)
    (path,) = ctx.store.root.glob("logits/*.logits")
    return study_context(tiny, "students.distilled.loss.kd.temperature=3"), path, expected


def told(ctx, monkeypatch):
    lines = []
    monkeypatch.setattr(ctx.progress, "say", lines.append)
    return lines


def flip(path):
    content = bytearray(path.read_bytes())
    content[PAGE + DIGEST + 1000] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": (flip, "damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[: PAGE + 5000]), ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "something else": (lambda path: path.write_bytes(b"PNG" * 5000), "holds something else"),
    "another's": (
        lambda path: path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1)),
        "something else",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_and_made_again(trained, monkeypatch, damage):
    ctx, path, expected = trained
    whole = path.read_bytes()
    harm, words = DAMAGES[damage]
    harm(path)
    lines = told(ctx, monkeypatch)
    weights = train_generation(ctx, split(plan(ctx))[1])["distilled"]
    assert same(weights, expected)
    assert words in " ".join(lines)
    assert path.read_bytes() == whole


def test_an_epoch_counts_when_it_is_whole(tmp_path, monkeypatch):
    codec, rows = Codec(4), torch.arange(160, dtype=torch.uint8).view(10, 16)
    store = LogitCache(tmp_path / "logits" / "a", {"teacher": "t"}, 10, codec)
    assert store.read(0) is None and count_stored_epochs(store.path) == 0
    with store.writing(2, 1e9):
        store.begin(1)
        store.add(rows[:6])
        assert store.read(1) is None
        store.add(rows[6:])
        assert store.read(1) is None  # as a kill would leave it
        store.end(1)
    assert (
        torch.equal(store.read(1), rows)
        and store.read(0) is None
        and count_stored_epochs(store.path) == 1
    )
    with store.writing(2, 1e9):
        store.begin(1)
        store.add(rows[:5])
        store.end(1)
    assert store.read(1) is None, "half an epoch"
    store.path.write_bytes(
        store.path.read_bytes()[: store.size(1)] + bytes(4000)
    )  # nothing in epoch 1
    monkeypatch.setattr(np, "memmap", no_answer)
    assert store.read(1) is None, (
        "a hole in a file is not looked into: on a full disk that could kill the process"
    )
    other = LogitCache(store.path, {"teacher": "u"}, 10, codec)
    assert other.read(1) is None


def test_only_one_process_writes(trained, monkeypatch):
    ctx, path, expected = trained
    flip(path)
    before = path.read_bytes()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert same(train_generation(ctx, split(plan(ctx))[1])["distilled"], expected)
    assert path.read_bytes() == before


def test_a_process_that_decodes_images_does_not_keep_the_lock(tmp_path, tiny, study_context):
    photos(tmp_path / "photos", 40, (8, 8))
    data = (
        "data.source=folder",
        f"data.root={tmp_path / 'photos'}",
        "data.resident_gb=0",
        "train.batch_size=32",
    )
    data += ("teachers.hard.model=mlp_32", "students.distilled.model=mlp_16")
    train_generation(study_context(tiny, *data), split(plan(study_context(tiny, *data)))[0])
    ctx = study_context(tiny, *data)  # whose processes start while the store is locked
    train_generation(ctx, split(plan(ctx))[1])
    assert ctx.splits.train.images.pool.idle is not None
    (path,) = ctx.store.root.glob("logits/*.logits")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_teacher_that_was_trained_again_is_asked_again(tiny, study_context):
    ctx = study_context(tiny)
    teachers, students = split(plan(ctx))
    train_generation(ctx, teachers)
    train_generation(ctx, students)
    assert plan_logit_cache(ctx, [students])[0].stored == 3
    record = ctx.store.folder(students[0].teachers[0].id) / "run.json"
    digest = ctx.store.record(students[0].teachers[0].id)["sha256"]["model.safetensors"]
    record.write_text(record.read_text().replace(digest, "other weights"))
    assert plan_logit_cache(ctx, [students])[0].stored == 0


def test_answers_that_grow_when_they_are_decoded_stay_encoded(tmp_path):
    codec = Codec(1000, "float16", 1)
    rows = codec.encode(torch.randn(10_000, 1000))
    store = LogitCache(tmp_path / "logits" / "a", {"teacher": "t"}, 10_000, codec)
    with store.writing(1, 1e9):
        store.begin(0)
        store.add(rows)
        store.end(0)
    answers = CachedTeacher(Teacher(torch.nn.Linear(2, 2)), codec, store, 100)
    answers.begin(0, torch.device("cpu"))
    assert answers.stored.dtype == torch.uint8  # 40 MB decoded
    assert torch.equal(answers(no_answer, 3, 0, 100).logits, codec.decode(rows[300:400]))


def test_nothing_is_said_of_what_nobody_wants(tiny, study_context, monkeypatch):
    ctx = study_context(tiny, "data.logit_cache_gb=0")
    lines = told(ctx, monkeypatch)
    for phase in split(plan(ctx)):
        train_generation(ctx, phase)
    assert not [line for line in lines if "answers" in line]


def test_the_limit_holds_and_is_told(tiny, study_context, monkeypatch):
    ctx = study_context(tiny, "data.logit_cache_gb=0.00001")
    lines = told(ctx, monkeypatch)
    for phase in split(plan(ctx)):
        train_generation(ctx, phase)
    assert "not kept" in " ".join(lines) and not list(ctx.store.root.glob("logits/*"))


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_disk_that_takes_nothing_stops_the_store_and_not_the_study(
    tiny, study_context, monkeypatch, when
):
    ctx = study_context(tiny)
    lines = told(ctx, monkeypatch)
    teachers, students = split(plan(ctx))
    train_generation(ctx, teachers)

    def full(*_):
        raise OSError(28, "No space left on device")

    if when == "open":
        monkeypatch.setattr(LogitCache, "_lock", full)
    else:
        write, calls = os.pwrite, []

        def filling(*arguments):
            calls.append(arguments)
            return write(*arguments) if len(calls) < 4 else full()

        monkeypatch.setattr(os, "pwrite", filling)
    train_generation(ctx, students)
    assert any("no longer kept: No space left" in line for line in lines)
    assert ctx.store.is_complete(students[0].id)


# ----------------------------------------------------------------------------------------- plan and processes


def test_the_plan_tells_what_is_stored_and_saves(tiny, study_context):
    ctx = study_context(tiny)
    teachers, students = split(plan(ctx))
    (fresh,) = plan_logit_cache(ctx, [students])
    assert fresh.stored == 0 and fresh.size == pytest.approx(
        len(ctx.splits.train) * 10 * 4 * 3, rel=0.01
    )
    train_generation(ctx, teachers)
    train_generation(ctx, students)
    (kept,) = plan_logit_cache(ctx, [students])
    assert (kept.stored, kept.size) == (3, 0)
    assert fresh.size == pytest.approx(kept.path.stat().st_size, rel=0.1)
    changed = study_context(tiny, "students.distilled.loss.kd.temperature=3", "train.epochs=3")
    threads = torch.get_num_threads()
    cohorts = dry_run(changed.recipe, ctx.store.root)["cohorts"]
    assert torch.get_num_threads() == threads
    assert (
        cohorts[-1]["answers"] == [{"teacher": "hard, seed 0", "stored": 3, "bytes": 0}]
        and cohorts[-1]["saved"] > 0
    )


def test_processes_that_share_batches_write_what_one_would(tiny, tmp_path):
    def run(launcher, out, *options, stores=1):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [
            *launcher,
            "-m",
            "distill",
            "run",
            str(tiny),
            *options,
            "--out",
            str(tmp_path / out),
        ]
        answer = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
        assert answer.returncode == 0, answer.stderr
        paths = list((tmp_path / out / "logits").glob("*.logits"))
        assert len(paths) == stores
        return paths[0] if paths else None, answer.stderr

    plain = (
        "teachers.hard.model=mlp_32",
        "students.distilled.model=mlp_16",
        "train.batch_size=101",
    )
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    alone, _ = run([sys.executable], "one", *plain)
    shared, _ = run(two, "two", *plain, "train.parallelism=batches")
    assert shared.name != alone.name and shared.stat().st_size == alone.stat().st_size
    rows = [
        np.frombuffer(p.read_bytes()[PAGE:], np.uint8).reshape(3, -1)[:, DIGEST:].copy()
        for p in (alone, shared)
    ]
    theirs, ours = (torch.from_numpy(r).view(torch.float32) for r in rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert count_stored_epochs(shared) == 3
    changed = (*plain, "train.parallelism=batches", "students.distilled.loss.kd.temperature=3")
    _, said = run(two, "two", *changed)
    assert "answers of 1 of 1 teachers are stored" in said
    run(two, "live", *changed, "data.logit_cache_gb=0", stores=0)
    weights = {
        name: {
            p.parent.name: p.read_bytes()
            for p in (tmp_path / name / "models").glob("*/model.safetensors")
        }
        for name in ("two", "live")
    }
    assert weights["live"] and weights["live"].items() <= weights["two"].items()


def test_answers_are_those_of_as_many_processes(tiny, study_context):
    ctx = study_context(tiny)
    (student,) = split(plan(ctx))[1]
    three = replace(ctx, accelerator=SimpleNamespace(num_processes=3, mixed_precision="no"))
    assert teacher_logits_identity(three, student, "t", True)["processes"] == 3
    assert teacher_logits_identity(three, student, "t", False) == teacher_logits_identity(
        ctx, student, "t", False
    )


def test_cohorts_are_split_by_memory(tiny, study_context):
    runs = split(
        plan(study_context(tiny, "students.alone.loss.cross_entropy.smoothing=[0, 0.1, 0.2, 0.3]"))
    )[0]
    sizes = {run.arm.name: 10 for run in runs}
    assert [len(c) for c in make_cohorts(runs)] == [5]
    assert [len(c) for c in make_cohorts(runs, sizes, 20)] == [2, 2, 1]
    assert [len(c) for c in make_cohorts(runs, sizes, 5)] == [
        1
    ] * 5  # a run that is too large is tried
    assert [run for c in make_cohorts(runs, sizes, 30) for run in c] == runs


def test_a_cohort_that_is_too_large_for_the_device_is_halved(tiny, study_context, monkeypatch):
    expected = train_generation(
        study_context(tiny, out="whole"), split(plan(study_context(tiny)))[0]
    )
    fit, ctx, tried = scheduler.fit, study_context(tiny), []

    def small(members, *arguments):
        tried.append(len(members))
        if len(members) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(members, *arguments)

    monkeypatch.setattr(scheduler, "fit", small)
    lines = told(ctx, monkeypatch)
    found = train_generation(ctx, split(plan(ctx))[0])
    assert tried == [3, 2, 1, 1, 1] and "out of memory with 3 runs side by side" in lines[0]
    assert all(same(found[name], expected[name]) for name in expected)
    monkeypatch.setattr(scheduler, "fit", lambda *_: small([1, 2]))
    (why,) = scheduler.train_generation(ctx, split(plan(ctx))[1]).values()
    assert "distilled, seed 0: out of memory; lower train.batch_size" in why


# ------------------------------------------------------------------------------------------------ how it computes


def test_a_half_precision_teacher_answers_as_under_autocast(study_context, tiny):
    ctx = study_context(
        tiny,
        "data.source=synthetic",
        "data.synthetic={shape: [3, 16, 16]}",
        "teachers.hard.model=cifar_resnet8",
    )
    views = torch.randn(8, 3, 16, 16)
    model = ctx.build(ctx.recipe.arm("hard"), 0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(views)
    found = Teacher(ctx.build(ctx.recipe.arm("hard"), 0), half=torch.bfloat16)(views).logits
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    assert choose_codec(Teacher(model, half=torch.bfloat16), views[:1], "exact") == Codec(
        10, "bfloat16"
    )
