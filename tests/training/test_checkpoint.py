"""Checkpoints: a run that was interrupted ends with the same bits as one that was not."""

import time

import pytest
import torch
from helpers.fake_distributed import FakeDistributed
from helpers.loss_studies import ALL_TERMS
from helpers.recipes import REMOVE, TINY, make_recipe, merge
from helpers.small_images import IMAGES
from helpers.training import (
    InterruptionError,
    create_students,
    fit,
    fit_and_stop,
    load_teachers,
    plan,
    run_of,
    same,
    stored_weights,
    train_context,
    train_generation,
    train_run,
)
from safetensors.torch import load_file

from distill.losses import OnlineTargets
from distill.study import scheduler
from distill.training.checkpoint import CheckpointTimer, restore_checkpoint, save_checkpoint
from distill.training.trainer import can_checkpoint, save_checkpoints, save_snapshot

PAIR = merge(TINY, {"students": {"alone": REMOVE}})
IMAGE_PAIR = merge(IMAGES, {"students": {"alone": REMOVE}, "train": {"channels_last": True}})
LOOKAHEAD = {"optimizer": "lookahead_adamw", "lr": 0.01}


def generation(ctx, number):
    return [run for run in plan(ctx) if run.generation == number]


def assert_same_study(ctx, expected):
    """Check that weights, history and snapshots of all runs are those of another study."""
    for run in plan(ctx):
        assert same(stored_weights(ctx, run), expected.weights[run.arm.name]), run.arm.name
        assert ctx.store.history(run.id) == expected.ctx.store.history(run.id)
        ours = ctx.store.snapshots(run.id)
        theirs = expected.ctx.store.snapshots(run.id)
        assert list(ours) == list(theirs)
        for epoch, path in ours.items():
            assert same(load_file(path), load_file(theirs[epoch]))


# ---------------------------------------------------------------------------------- between epochs


@pytest.mark.parametrize(
    "document",
    [
        PAIR,
        merge(PAIR, {"train": {"optimizer": "adamw", "lr": 0.01, "ema": 0.9}}),
        merge(PAIR, {"train": {"optimizer": "lamb", "lr": 0.01}}),
        merge(PAIR, {"train": LOOKAHEAD}),
        pytest.param(IMAGE_PAIR, marks=pytest.mark.slow),
        pytest.param(merge(IMAGE_PAIR, {"train": LOOKAHEAD}), marks=pytest.mark.slow),
    ],
    ids=["sgd", "adamw and ema", "lamb", "lookahead", "channels last", "both"],
)
def test_a_run_stopped_between_epochs_ends_with_the_same_bits(
    study_context, trained_once, document
):
    ctx = study_context(document, "train.epochs=3")
    train_run(ctx, "hard")
    run = run_of(ctx, "distilled")
    fit_and_stop(ctx, [run], after_epoch=2)

    [student] = create_students(ctx, [run])
    restore_checkpoint(student, train_context(ctx))
    assert (student.epoch, student.step) == (2, 0)
    assert not ctx.store.is_complete(run.id)

    train_generation(ctx, [run])
    assert ctx.store.checkpoints.load(run.id) is None
    assert_same_study(ctx, trained_once(document, "train.epochs=3"))


@pytest.mark.slow
def test_every_kind_of_term_ends_with_the_same_bits_after_a_stop(study_context, trained_once):
    """Projectors, online targets, their optimizer states and warm-ups are in the checkpoint."""
    ctx = study_context(ALL_TERMS)
    runs = plan(ctx)
    teachers = [run for run in runs if run.arm.role == "teacher"]
    students = [run for run in runs if run.arm.role == "student"]
    train_generation(ctx, teachers)
    fit_and_stop(ctx, students, after_epoch=2)

    [student] = create_students(ctx, [run_of(ctx, "online")])
    restore_checkpoint(student, train_context(ctx))
    targets = student.loss_modules["online_smoothing"]
    assert isinstance(targets, OnlineTargets)
    # They were uniform, 0.1, and have learned from two epochs.
    assert (targets.targets.diagonal() > 0.11).all()

    for number in (0, 1):
        train_generation(ctx, [run for run in students if run.generation == number])
    assert_same_study(ctx, trained_once(ALL_TERMS))


# ----------------------------------------------------------------------------------- within epochs


@pytest.mark.parametrize(
    ("document", "batch_size"),
    [
        (TINY, 128),
        (merge(TINY, {"train": {**LOOKAHEAD, "ema": 0.9}}), 128),
        (merge(TINY, {"students": {"alone": {"loss": {"online_smoothing": {}}}}}), 128),
        pytest.param(
            merge(IMAGES, {"data": {"augment": {"mixup": 0.5}}}), 32, marks=pytest.mark.slow
        ),
    ],
    ids=["sgd", "lookahead and ema", "online smoothing", "mixup and batch norm"],
)
def test_a_run_stopped_within_an_epoch_ends_with_the_same_bits(
    study_context, trained_once, monkeypatch, document, batch_size
):
    """Checkpoints are written every second step, and the stop is between those of two students."""
    overrides = ("train.epochs=3", f"train.batch_size={batch_size}", "train.snapshots=2")
    expected = trained_once(document, *overrides)
    ctx = study_context(document, *overrides)
    monkeypatch.setattr("distill.training.trainer.CHECK_EVERY", 2)
    saved = []

    def save_and_stop(student, store):
        save_checkpoint(student, store)
        saved.append((student.epoch, student.step))
        if len(saved) >= 5 and student.step:
            raise InterruptionError

    for number in (0, 1):
        cohort = generation(ctx, number)
        saved.clear()
        with monkeypatch.context() as patch, pytest.raises(InterruptionError):
            patch.setattr("distill.training.trainer.save_checkpoint", save_and_stop)
            scheduler.train_generation(ctx, cohort)
        checkpoints = [ctx.store.checkpoints.load(run.id) for run in cohort]
        reached = {(checkpoint["epoch"], checkpoint["step"]) for checkpoint in checkpoints}
        assert len(reached) == min(2, len(cohort))
        assert any(step for _, step in reached)
        train_generation(ctx, cohort)
    assert_same_study(ctx, expected)


def test_without_a_stop_checkpoints_do_not_change_a_run(study_context, tiny_study, monkeypatch):
    monkeypatch.setattr("distill.training.trainer.CHECK_EVERY", 1)
    ctx = study_context(TINY)
    for number in (0, 1):
        train_generation(ctx, generation(ctx, number))
    assert_same_study(ctx, tiny_study)


def test_training_time_goes_on_from_the_checkpoint(study_context):
    ctx = study_context(TINY)
    run = run_of(ctx, "hard")
    [student] = create_students(ctx, [run])
    student.seconds = 1000.0
    save_checkpoint(student, ctx.store)
    train_generation(ctx, [run])
    assert 1000 < ctx.store.record(run.id)["seconds"] < 1060


# ------------------------------------------------------------------------- what cannot be restored


def restored(ctx, run):
    """Return a new state of a run after it was restored, and what was logged."""
    [student] = create_students(ctx, [run], load_teachers(ctx, [run]))
    lines = []
    restore_checkpoint(student, train_context(ctx), lines.append)
    return student, lines


def test_a_run_without_a_checkpoint_starts_at_its_first_step(study_context):
    ctx = study_context(TINY)
    student, lines = restored(ctx, run_of(ctx, "hard"))
    assert (student.epoch, student.step, lines) == (0, 0, [])


def test_a_checkpoint_that_is_damaged_is_dropped(study_context):
    ctx = study_context(TINY)
    run = run_of(ctx, "hard")
    fit_and_stop(ctx, [run], after_epoch=1)
    [path] = ctx.store.models.glob("*.partial")
    path.write_bytes(path.read_bytes()[:1000])
    student, [line] = restored(ctx, run)
    assert student.epoch == 0
    assert str(path) in line and "hard, seed 0" in line


def test_a_damaged_snapshot_makes_the_run_start_again(study_context, tiny_study):
    """Else it would be stored with the run; the checkpoint comes after it, so it cannot mend it."""
    ctx = study_context(TINY, "train.snapshots=2")
    run = run_of(ctx, "hard")
    fit_and_stop(ctx, [run], after_epoch=2)
    snapshot = ctx.store.checkpoints.snapshots(run.id)[1]
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    student, [line] = restored(ctx, run)
    assert student.epoch == 0
    assert str(snapshot) in line and "hard, seed 0" in line
    assert ctx.store.checkpoints.load(run.id) is None
    assert same(train_generation(ctx, [run])["hard"], tiny_study.weights["hard"])
    assert list(ctx.store.snapshots(run.id)) == [0, 1]


def test_a_checkpoint_of_another_version_is_dropped(study_context):
    ctx = study_context(TINY)
    run = run_of(ctx, "hard")
    fit_and_stop(ctx, [run], after_epoch=1)
    checkpoint = ctx.store.checkpoints.load(run.id)
    del checkpoint["loss_modules"]
    ctx.store.checkpoints.save(run.id, checkpoint)
    student, [line] = restored(ctx, run)
    assert (student.epoch, student.history) == (0, [])
    assert "hard, seed 0" in line
    assert ctx.store.checkpoints.load(run.id) is None


# ------------------------------------------------------------------------------------------- timer


def test_a_timer_is_due_after_its_minutes(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timer = CheckpointTimer(minutes=2)
    assert not timer.is_due()
    now = 219.9
    assert not timer.is_due()
    now = 220.0
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()
    assert CheckpointTimer(minutes=0).is_due()


def test_a_long_interval_writes_no_checkpoint(study_context):
    ctx = study_context(make_recipe(TINY, "train.checkpoint_minutes=60"))
    run = run_of(ctx, "hard")
    fit(ctx, create_students(ctx, [run]))
    assert ctx.store.checkpoints.load(run.id) is None
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------- several processes


def test_only_process_0_goes_on_with_what_all_have_gathered(study_context):
    """Sums of the epoch and predictions for online targets would count once for each process."""
    ctx = study_context(TINY, "students.alone.loss={online_smoothing: {}, cross_entropy: {}}")
    run = run_of(ctx, "alone")
    [student] = create_students(ctx, [run])
    student.meters.sums = {"loss": torch.tensor(5.0)}
    student.loss_modules["online_smoothing"].sums += 1
    save_checkpoint(student, ctx.store)
    for rank, factor in ((0, 1), (1, 0)):
        [restored_student] = create_students(ctx, [run])
        restore_checkpoint(restored_student, train_context(ctx, FakeDistributed(rank=rank)))
        assert restored_student.meters.sums["loss"] == 5 * factor
        sums = restored_student.loss_modules["online_smoothing"].sums
        assert torch.equal(sums, torch.full_like(sums, factor))


def test_processes_write_no_checkpoint_while_each_has_its_own_predictions(study_context):
    ctx = study_context(TINY, "students.alone.loss={online_smoothing: {}, cross_entropy: {}}")
    online, plain = create_students(ctx, [run_of(ctx, "alone"), run_of(ctx, "hard")])
    several = train_context(ctx, FakeDistributed())
    assert can_checkpoint([plain], several)
    assert not can_checkpoint([plain, online], several)
    assert can_checkpoint([plain, online], train_context(ctx))


def test_only_process_0_writes_checkpoints_and_snapshots(study_context):
    ctx = study_context(TINY, "train.snapshots=1")
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    for rank, number_of_files in ((1, 0), (0, 1)):
        own_ctx = train_context(ctx, FakeDistributed(rank=rank))
        save_checkpoints([student], own_ctx)
        save_snapshot(student, own_ctx)
        assert len(list(ctx.store.models.glob("*.partial"))) == number_of_files
        assert len(ctx.store.checkpoints.snapshots(student.run.id)) == number_of_files
