"""The training loop: against loops written by hand, in any cohort, and with every option of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.fake_distributed import FakeDistributed
from helpers.photos import write_photos
from helpers.recipes import TINY, make_recipe, merge
from helpers.training import (
    assert_close,
    create_students,
    fit,
    load_teachers,
    plan,
    run_of,
    same,
    stored_weights,
    train_context,
    train_generation,
    train_run,
    train_study,
)
from safetensors.torch import load_file
from torch import nn

from distill.data.augment import derive_seed, normalise
from distill.data.loaders import training_batches
from distill.data.splits import Split
from distill.losses import compute_loss
from distill.models.factory import input_config
from distill.training.meters import MicroBatchRecord
from distill.training.optim import make_optimizer, make_scheduler
from distill.training.trainer import drop_diverged

CPU = torch.device("cpu")
SEED = 0
EPOCHS = 3
STEPS = 8  # 1078 training images in batches of 128


# ------------------------------------------------------------------------- loops written by hand


def batches_of(ctx, augment):
    """Yield the number of each step of a whole training with its batch of 128 views."""
    step = 0
    for epoch in range(EPOCHS):
        for batch in training_batches(ctx.splits, augment, 128, SEED, epoch, CPU):
            yield step, batch
            step += 1


def test_training_on_labels_is_the_loop_one_would_write(study_context):
    """SGD with Nesterov momentum, a cosine rate and smoothed cross-entropy in plain PyTorch."""
    ctx = study_context(
        TINY,
        "students.alone.loss.cross_entropy.smoothing=0.1",
        "train.weight_decay=0.01",
        "train.optimizer={name: sgd, filter_bias_and_bn: false}",
        "train.clip_grad=0.5",
    )
    arm = run_of(ctx, "alone").arm
    trained = train_run(ctx, "alone")

    model = ctx.build(arm, SEED).train()
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    for step, batch in batches_of(ctx, arm.augment):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / (STEPS * EPOCHS)))
        logits = model(normalise(batch.views, *input_config(model)))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert step + 1 == STEPS * EPOCHS
    assert_close(trained, model.state_dict(), rtol=1e-5, atol=1e-6)


def test_distillation_is_the_loop_one_would_write(study_context):
    """0.1 CE + 0.9 T² KL with a teacher in eval mode on the same views; the student has dropout."""
    ctx = study_context(TINY)
    trained = train_run(ctx, "distilled")

    arm = run_of(ctx, "distilled").arm
    teacher = ctx.load(run_of(ctx, "hard")).eval()
    model = ctx.build(arm, SEED).train()
    optimizer = make_optimizer(model, arm.train, "")
    schedule = make_scheduler(optimizer, arm.train, STEPS, "")
    for step, batch in batches_of(ctx, arm.augment):
        inputs = normalise(batch.views, *input_config(model))
        torch.manual_seed(derive_seed("dropout", SEED, step, 0, 0))
        logits = model(inputs)
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        soft = F.kl_div(
            F.log_softmax(logits / 2, 1), F.softmax(teacher_logits / 2, 1), reduction="batchmean"
        )
        optimizer.zero_grad()
        (0.1 * F.cross_entropy(logits, batch.labels) + 0.9 * 4 * soft).backward()
        optimizer.step()
        schedule.step_update(step + 1)
    assert_close(trained, model.state_dict(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------- cohorts


def test_a_cohort_gives_the_weights_of_separate_runs_bit_for_bit(study_context, tiny_study):
    ctx = study_context(TINY)
    for run in plan(ctx):
        weights = train_generation(ctx, [run])[run.arm.name]
        assert same(weights, tiny_study.weights[run.arm.name])
        assert ctx.store.history(run.id) == tiny_study.ctx.store.history(run.id)


def test_seeds_differ_in_weights_and_in_views(study_context):
    ctx = study_context(TINY, "seeds=2", "train.epochs=1")
    runs = [run for run in plan(ctx) if run.arm.name == "hard"]
    first, second = create_students(ctx, runs)
    # From the same initial weights, only views, order and dropout can make a difference.
    second.model.load_state_dict(first.model.state_dict())
    for student in (first, second):
        fit(ctx, [student])
    assert not same(first.model.state_dict(), second.model.state_dict())


def test_a_student_that_diverges_leaves_the_cohort_alone(study_context, tiny_study, monkeypatch):
    """Its message names arm, epoch, step and terms; the others end as they would without it."""
    monkeypatch.setattr("distill.training.trainer.CHECK_EVERY", 2)
    wild = {"model": "mlp_16", "train": {"lr": 1e18}, "loss": {"cross_entropy": {}}}
    ctx = study_context(merge(TINY, {"students": {"wild": wild}}))
    runs = [run for run in plan(ctx) if run.generation == 0]
    students = create_students(ctx, runs)
    logged = []
    fit(ctx, students, log_epoch=lambda epoch, _, left: logged.append((epoch, len(left))))

    assert logged == [(1, 3), (2, 3), (3, 3)]
    for student in students:
        if student.run.arm.name == "wild":
            assert "wild, seed 0" in student.failure
            for fact in ("epoch 1", "step 2 of 8", "cross_entropy", "train.lr", "train.clip_grad"):
                assert fact in student.failure
            assert student.epoch == 0 and student.history == []
        else:
            assert student.failure is None
            assert same(student.model.state_dict(), tiny_study.weights[student.run.arm.name])


def test_the_first_step_whose_loss_is_not_finite_is_named(study_context):
    """The check is at the end of the epoch; step 1 is fine and makes weights that give NaN."""
    ctx = study_context(TINY, "train.lr=1.0e+18")
    [student] = create_students(ctx, [run_of(ctx, "alone/smoothing=0")])
    fit(ctx, [student])
    assert "step 2 of 8" in student.failure


def test_logits_that_are_not_finite_after_an_epoch_stop_a_student(study_context):
    """The last update of the epoch may be the one that diverges, after a loss that was finite."""
    ctx = study_context(TINY, "train.batch_size=1078", "train.lr=1.0e+38")
    students = create_students(
        ctx, [run_of(ctx, "alone/smoothing=0"), run_of(ctx, "alone/smoothing=0.1")]
    )
    with torch.no_grad():
        students[1].optimizer.param_groups[0]["lr"] = 0.1
        students[1].scheduler.base_values = [0.1]
    fit(ctx, students)
    assert "alone/smoothing=0, seed 0" in students[0].failure
    assert "epoch 1" in students[0].failure
    assert students[0].history == []
    assert students[1].failure is None
    assert len(students[1].history) == EPOCHS


# ---------------------------------------------------------------------------- options of the loop


def test_accumulation_changes_nothing_but_rounding(study_context, trained_once):
    """Without dropout, whose masks depend on the part of the batch."""
    without_dropout = ("teachers.hard.model=mlp_32", "students.distilled.model=mlp_16")
    plain = trained_once(TINY, *without_dropout)
    ctx = study_context(TINY, *without_dropout, "train.accumulate=3")
    for arm, weights in train_study(ctx).items():
        assert_close(weights, plain.weights[arm], rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(
            ctx.store.history(run_of(ctx, arm).id),
            plain.ctx.store.history(run_of(plain.ctx, arm).id),
            strict=True,
        ):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["train"]["top1"] == pytest.approx(theirs["train"]["top1"], abs=2e-3)


def test_mixed_views_train_with_soft_labels(study_context):
    ctx = study_context(TINY, "data.augment={mixup: 0.2, cutmix: 1.0}", "train.epochs=1")
    train_run(ctx, "distilled")
    [entry] = ctx.store.history(run_of(ctx, "distilled").id)
    assert set(entry["terms"]) == {"cross_entropy", "kd"}
    assert 0 < entry["train"]["top1"] < 1


@pytest.mark.slow
def test_bf16_learns_as_float32_does_and_keeps_float32_weights(study_context, monkeypatch):
    full = study_context(TINY, "train.epochs=10", out="full")
    train_study(full)
    half = study_context(TINY, "train.epochs=10", out="half")
    monkeypatch.setattr(
        half.accelerator, "autocast", lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
    )
    for weights in train_study(half).values():
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
    for run in plan(full):
        histories = [ctx.store.history(run.id) for ctx in (full, half)]
        in_full, in_half = (history[-1]["validation"]["top1"] for history in histories)
        assert in_full > 0.5
        assert abs(in_full - in_half) < 0.06
        assert histories[0] != histories[1]


def test_losses_are_computed_outside_of_autocast(study_context, monkeypatch):
    ctx = study_context(TINY, "train.epochs=1")
    monkeypatch.setattr(
        ctx.accelerator, "autocast", lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
    )
    calls = []

    def spy(terms, outputs, *arguments, **keywords):
        calls.append((torch.is_autocast_enabled("cpu"), outputs.logits.dtype))
        return compute_loss(terms, outputs, *arguments, **keywords)

    monkeypatch.setattr("distill.training.state.compute_loss", spy)
    train_run(ctx, "alone/smoothing=0")
    assert calls == [(False, torch.bfloat16)] * STEPS


# ------------------------------------------------------------------------------ data and snapshots


class ForbiddenSplit(Split):
    """A split that must not be used."""

    def __init__(self, images):
        super().__init__(images, None)

    def __len__(self):
        raise AssertionError("the test split was used")

    @property
    def labels(self):
        raise AssertionError("the test split was used")


def test_training_never_uses_the_test_split(study_context):
    ctx = study_context(TINY, "train.epochs=1")
    train_run(ctx, "hard")
    ctx.splits.test = ForbiddenSplit(ctx.splits.test.images)
    runs = [run_of(ctx, arm) for arm in ("alone/smoothing=0", "distilled")]
    teachers = load_teachers(ctx, runs)
    students = create_students(ctx, runs, teachers)
    fit(ctx, students, teachers)
    assert [len(student.history) for student in students] == [1, 1]


def test_images_of_a_folder_are_in_memory_before_the_first_batch(tmp_path, study_context):
    data = {
        "source": "folder",
        "root": str(write_photos(tmp_path / "photos", 12, (8, 8))),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    }
    train = {"epochs": 1, "batch_size": 8}
    ctx = study_context(merge(TINY, {"data": data, "train": train}))
    assert ctx.splits.train.images.pixels is None
    train_run(ctx, "alone/smoothing=0")
    assert ctx.splits.train.images.pixels is not None


def test_snapshots_are_the_weights_at_the_start_of_their_epochs(study_context, tiny_study):
    """Three epochs, two snapshots: the initial weights, and those that one epoch leads to."""
    ctx = study_context(TINY, "train.snapshots=2")
    run = run_of(ctx, "hard")
    assert same(train_run(ctx, "hard"), tiny_study.weights["hard"])
    snapshots = ctx.store.snapshots(run.id)
    assert list(snapshots) == [0, 1]
    assert same(load_file(snapshots[0]), ctx.build(run.arm, SEED).state_dict())

    after_one = []
    [student] = create_students(ctx, [run])
    fit(ctx, [student], log_epoch=lambda epoch, *_: after_one.append(clone(student.model)))
    assert same(load_file(snapshots[1]), after_one[0])
    assert same(stored_weights(ctx, run), after_one[2])


def clone(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_rate_of_training_is_logged_after_every_epoch(study_context):
    ctx = study_context(make_recipe(TINY))
    logged = []
    students = create_students(ctx, [run_of(ctx, "hard")])
    fit(ctx, students, log_epoch=lambda *arguments: logged.append(arguments))
    assert [epoch for epoch, _, _ in logged] == [1, 2, 3]
    for _, images_per_second, left in logged:
        assert images_per_second > 0
        assert left == students


# ------------------------------------------------------------------------------- several processes


def test_a_student_that_diverges_on_another_process_is_dropped_here_too(study_context):
    class OtherDiverged(FakeDistributed):
        def sum(self, tensor):
            # Flags of the two students, and process 0's decision on a checkpoint.
            return tensor + torch.tensor([0.0, 1.0, 0.0])

    ctx = study_context(TINY)
    students = create_students(
        ctx, [run_of(ctx, "alone/smoothing=0"), run_of(ctx, "alone/smoothing=0.1")]
    )
    for student in students:
        student.meters.recent = [
            MicroBatchRecord(4, torch.tensor(1.0), {"cross_entropy": torch.ones(())})
        ]
    kept, is_due = drop_diverged(
        students, train_context(ctx, OtherDiverged()), checkpoint_is_due=False
    )
    assert kept == students[:1]
    assert not is_due
    assert "alone/smoothing=0.1, seed 0" in students[1].failure
    assert "another process" in students[1].failure
    assert [student.meters.recent for student in students] == [[], []]


@pytest.mark.parametrize(("rank", "expected"), [(0, True), (1, False)])
def test_process_0_decides_when_a_checkpoint_is_due(study_context, rank, expected):
    """The others' clocks do not count, or processes would wait for each other."""
    ctx = study_context(TINY)
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    student.meters.recent = [MicroBatchRecord(0, torch.tensor(1.0), {})]
    _, is_due = drop_diverged(
        [student], train_context(ctx, FakeDistributed(rank=rank)), checkpoint_is_due=True
    )
    assert is_due is expected
