"""The state of a run: its initial weights, their layout, compilation, average and one step."""

import pytest
import torch
from helpers.fake_distributed import FakeDistributed
from helpers.recipes import TINY
from helpers.small_images import IMAGES
from helpers.training import (
    assert_close,
    create_students,
    load_teachers,
    plan,
    run_of,
    same,
    train_context,
    train_run,
    train_study,
)
from torch import nn

from distill.models.small_registry import CifarResNet
from distill.training.state import steps_per_epoch


def test_equal_networks_of_one_seed_start_alike_and_other_seeds_do_not(study_context):
    ctx = study_context(TINY)
    first = ctx.recipe.arm("alone/smoothing=0")
    second = ctx.recipe.arm("alone/smoothing=0.1")
    weights = ctx.build(first, 0).state_dict()
    assert same(weights, ctx.build(second, 0).state_dict())
    assert not same(weights, ctx.build(first, 1).state_dict())


def test_an_epoch_has_the_steps_that_fill_a_batch(study_context):
    ctx = study_context(TINY)
    train = run_of(ctx, "hard").arm.train
    for batch_size, steps in ((128, 8), (1078, 1), (539, 2), (540, 1), (5000, 1)):
        changed = train.model_copy(update={"batch_size": batch_size})
        assert steps_per_epoch(ctx.splits, changed) == steps
        assert train_context(ctx).global_batch_size(changed) == min(batch_size, 1078)


# ------------------------------------------------------------------------- averages of the weights


def test_the_average_of_the_weights_is_what_is_stored(study_context, tiny_study):
    """At a rate of nearly 0 it is the start; at a real rate it is between start and end."""
    ctx = study_context(TINY, "train.ema=0.9", "train.lr=1.0e-12", out="still")
    arm = "alone/smoothing=0"
    start = ctx.build(run_of(ctx, arm).arm, 0).state_dict()
    assert_close(train_run(ctx, arm), start, rtol=1e-5, atol=1e-7)

    moving = train_run(study_context(TINY, "train.ema=0.99"), arm)
    plain = tiny_study.weights[arm]
    assert not same(moving, plain)
    moved = (moving["fc1.weight"] - start["fc1.weight"]).norm()
    moved_without_average = (plain["fc1.weight"] - start["fc1.weight"]).norm()
    assert 0 < moved < moved_without_average


def test_the_average_has_the_decay_of_the_recipe(study_context):
    """After two steps: 0.9 (0.9 w0 + 0.1 w1) + 0.1 w2."""
    ctx = study_context(TINY, "train.ema=0.9")
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    expected = student.model.fc1.weight.detach().clone()
    for step in range(2):
        student.zero_grad()
        student.forward(torch.randn(4, 1, 8, 8)).logits.square().sum().backward()
        student.optimizer_step(step, train_context(ctx).dist)
        expected = 0.9 * expected + 0.1 * student.model.fc1.weight.detach()
    torch.testing.assert_close(student.eval_model.fc1.weight, expected)
    assert student.eval_model is not student.model


# ---------------------------------------------------------------------------------------- one step


def test_gradients_are_clipped_over_network_and_loss_modules_together(study_context):
    ctx = study_context(TINY, "train.clip_grad=0.25", "students.distilled.loss={hint: {}, kd: {}}")
    train_run(ctx, "hard")
    run = run_of(ctx, "distilled")
    [student] = create_students(ctx, [run], load_teachers(ctx, [run]))
    assert len(student.trained_weights) == len(list(student.model.parameters())) + 2
    for weight in student.trained_weights:
        weight.grad = torch.ones_like(weight)
    student.optimizer_step(0, train_context(ctx).dist)
    squares = [weight.grad.square().sum() for weight in student.trained_weights]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.25, rel=1e-4)


def test_zero_grad_drops_all_gradients(study_context):
    ctx = study_context(TINY)
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    student.forward(torch.randn(4, 1, 8, 8)).logits.sum().backward()
    student.zero_grad()
    assert all(weight.grad is None for weight in student.trained_weights)


# ------------------------------------------------------------------ layout in memory, compilation


def test_channels_last_changes_nothing_but_rounding(study_context, trained_once, monkeypatch):
    plain = trained_once(IMAGES)
    batch_layouts = set()
    forward = CifarResNet.forward

    def spy(self, images):
        if torch.is_grad_enabled() or len(images) == 48:
            batch_layouts.add(images.is_contiguous(memory_format=torch.channels_last))
        return forward(self, images)

    monkeypatch.setattr(CifarResNet, "forward", spy)
    ctx = study_context(IMAGES, "train.channels_last=true")
    for arm, weights in train_study(ctx).items():
        assert all(weight.is_contiguous() for weight in weights.values())
        assert_close(weights, plain.weights[arm], rtol=1e-2, atol=1e-3)
    assert batch_layouts == {True}
    # Rounding is part of a run, so these are other runs.
    assert {run.id for run in plan(plain.ctx)}.isdisjoint({run.id for run in plan(ctx)})


def test_compiled_networks_are_called_and_plain_ones_stored(
    study_context, trained_once, monkeypatch
):
    """torch.compile itself is PyTorch's to test: here it is called for every batch, only there."""
    calls = {"student": 0, "teacher": 0}

    def compiled(function):
        # Of a student the module is compiled, of a teacher its forward method.
        name = "student" if isinstance(function, nn.Module) else "teacher"

        class Compiled(nn.Module):
            def forward(self, images):
                calls[name] += 1
                return function(images)

        return Compiled()

    monkeypatch.setattr(torch, "compile", compiled)
    ctx = study_context(IMAGES, "train.compile=true")
    weights = train_study(ctx)
    steps = 2 * 3
    assert calls == {"student": 4 * steps, "teacher": steps}
    expected = trained_once(IMAGES).weights
    assert all(same(weights[arm], expected[arm]) for arm in expected)


# ------------------------------------------------------------------------------- several processes


def test_gradients_of_processes_add_up_to_those_of_the_whole_batch(study_context):
    """DistributedDataParallel averages them, so each is multiplied by the number of processes."""
    ctx = study_context(TINY)
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    weight = student.model.fc1.weight
    student.backward(2 * weight.sum(), FakeDistributed(world_size=3))
    assert torch.equal(weight.grad, torch.full_like(weight, 6))


def test_online_targets_are_the_mean_over_all_processes(study_context):
    """A sum and a count of 1 here, and a sum of 2 and a count of 3 on another process."""

    class Unequal(FakeDistributed):
        def sum(self, tensor):
            return tensor + (2 if tensor.ndim == 2 else 3)

    ctx = study_context(TINY, "students.alone.loss={online_smoothing: {}, cross_entropy: {}}")
    [student] = create_students(ctx, [run_of(ctx, "alone")])
    targets = student.loss_modules["online_smoothing"]
    targets.sums += 1
    targets.counts += 1
    student.step = 8
    student.end_epoch(Unequal())
    assert torch.equal(targets.targets, torch.full((10, 10), 0.75))
    assert not targets.sums.any() and not targets.counts.any()
    assert (student.epoch, student.step) == (1, 0)


def test_all_processes_take_the_batch_statistics_of_the_first(study_context):
    """Those of the network, and those of the average of its weights; each buffer once."""

    class FromProcess0(FakeDistributed):
        def broadcast(self, tensor, source=0):
            assert source == 0
            return tensor.add_(1)

    ctx = study_context(IMAGES, "train.ema=0.9")
    [student] = create_students(ctx, [run_of(ctx, "hard")])
    before = {name: buffer.clone() for name, buffer in student.model.named_buffers()}
    student.end_epoch(FromProcess0(rank=1))
    for model in (student.model, student.eval_model):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name] + 1)
