"""The plan of the logit cache: what is there, what will be written, what it depends on."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.recipes import TINY, make_recipe
from helpers.training import plan, train_generation

from distill.study.logit_cache_plan import plan_logit_cache, teacher_logits_identity


@pytest.fixture
def ctx(study_context):
    return study_context(make_recipe(TINY, "train.epochs=2"))


def generations(ctx):
    """Return the teachers, and their students."""
    runs = plan(ctx)
    teachers = [run for run in runs if run.generation == 0]
    students = [run for run in runs if run.generation == 1]
    return teachers, students


def test_the_plan_has_the_epochs_and_bytes_that_are_cached_and_will_be(ctx):
    teachers, students = generations(ctx)
    (before,) = plan_logit_cache(ctx, [students])
    assert (before.epochs, before.stored) == (2, 0)
    # Ten classes in float32.
    assert before.new_bytes == 2 * len(ctx.splits.train) * 10 * 4
    train_generation(ctx, teachers)
    train_generation(ctx, students)
    (after,) = plan_logit_cache(ctx, [students])
    assert (after.epochs, after.stored, after.new_bytes) == (2, 2, 0)
    written = sum(file.stat().st_size for file in after.path.glob("*.npy"))
    assert written == pytest.approx(before.new_bytes, rel=0.1)


def test_a_teacher_that_was_trained_again_is_not_cached(ctx):
    teachers, students = generations(ctx)
    train_generation(ctx, teachers)
    train_generation(ctx, students)
    teacher = students[0].teachers[0].id
    record = ctx.store.folder(teacher) / "run.json"
    digest = ctx.store.record(teacher)["sha256"]["model.safetensors"]
    record.write_text(record.read_text().replace(digest, "other weights"))
    assert plan_logit_cache(ctx, [students])[0].stored == 0


def test_logits_depend_on_the_number_of_processes_that_share_a_batch(ctx):
    (student,) = generations(ctx)[1]
    three = replace(ctx, accelerator=SimpleNamespace(num_processes=3, mixed_precision="no"))
    shared = teacher_logits_identity(three, student, "t", data_parallel=True)
    assert shared["processes"] == 3
    of_three = teacher_logits_identity(three, student, "t", data_parallel=False)
    assert of_three == teacher_logits_identity(ctx, student, "t", data_parallel=False)


def test_a_limit_that_is_too_low_leaves_no_cache(study_context, monkeypatch):
    ctx = study_context(make_recipe(TINY, "train.epochs=2", "data.logit_cache_gb=0.00001"))
    log = []
    monkeypatch.setattr(ctx.progress, "log", log.append)
    for generation in generations(ctx):
        train_generation(ctx, generation)
    assert not list(ctx.store.root.glob("logits/*"))
    assert [line for line in log if "logit_cache_gb" in line and "logits" in line]
