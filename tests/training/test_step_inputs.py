"""The inputs of a step: micro-batches, normalised views, teachers' outputs, seeds of dropout."""

from types import SimpleNamespace

import pytest
import torch
from helpers.fake_distributed import FakeDistributed
from helpers.recipes import TINY, merge
from helpers.training import create_students, plan, run_of, train_context

from distill.data.augment import Batch
from distill.data.loaders import training_batches
from distill.losses import Outputs
from distill.models.factory import input_config
from distill.training.step_inputs import (
    NormalisedInputs,
    TeacherOutputs,
    micro_batches,
    seed_dropout,
)

BATCH = Batch(torch.rand(10, 1, 8, 8) * 255, torch.arange(10))


@pytest.mark.parametrize(
    ("accumulate", "sizes"), [(1, [10]), (2, [5, 5]), (3, [4, 4, 2]), (10, [1] * 10)]
)
def test_micro_batches_are_the_batch_in_parts(accumulate, sizes):
    parts = list(micro_batches(BATCH, accumulate))
    assert [len(part.views) for part in parts] == sizes
    assert [part.number for part in parts] == list(range(len(sizes)))
    assert [part.first for part in parts] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [part.is_last for part in parts] == [False] * (len(sizes) - 1) + [True]
    assert torch.equal(torch.cat([part.views for part in parts]), BATCH.views)
    assert torch.equal(torch.cat([part.labels for part in parts]), BATCH.labels)


def test_networks_of_equal_settings_share_their_input(study_context):
    larger = {"model": {"name": "cifar_resnet8"}, "input_size": 16, "loss": {"cross_entropy": {}}}
    ctx = study_context(merge(TINY, {"students": {"larger": larger}}))
    hard, alone, larger = (
        ctx.build(run_of(ctx, arm).arm, 0) for arm in ("hard", "alone/smoothing=0", "larger")
    )
    inputs = NormalisedInputs(BATCH.views, torch.channels_last)
    assert inputs.for_model(hard) is inputs.for_model(alone)
    assert inputs.for_model(larger).shape == (10, 1, 16, 16)
    [mean], [std], _ = input_config(hard)
    torch.testing.assert_close(inputs.for_model(hard), (BATCH.views / 255 - mean) / std)


class CountingTeacher:
    """Gives the same logits for every image, and counts its forward passes."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)
        self.calls = []

    def __call__(self, images, *, step, first, count):
        self.calls.append((step, first, count))
        return Outputs(self.logits.expand(count, -1))


def student_of(*teacher_ids):
    return SimpleNamespace(teacher_ids=teacher_ids)


def test_each_teacher_runs_once_however_many_students_learn_from_it():
    teachers = {"a": CountingTeacher([0.0, 2.0]), "b": CountingTeacher([1.0, 0.0])}
    micro = list(micro_batches(BATCH, 2))[1]
    inputs = NormalisedInputs(micro.views, torch.contiguous_format)
    outputs = TeacherOutputs(teachers, inputs, micro, step=7)

    assert outputs.for_student(student_of()) is None
    of_a = outputs.for_student(student_of("a"))
    assert outputs.for_student(student_of("a")) is of_a
    of_both = outputs.for_student(student_of("a", "b"))
    assert outputs.for_student(student_of("a", "b")) is of_both
    assert teachers["a"].calls == [(7, 5, 5)]
    assert teachers["b"].calls == [(7, 5, 5)]

    assert torch.equal(of_a.logits, teachers["a"].logits.expand(5, -1))
    mean = (teachers["a"].logits.softmax(0) + teachers["b"].logits.softmax(0)) / 2
    torch.testing.assert_close(of_both.logits.softmax(1), mean.expand(5, -1))


def test_dropout_depends_on_seed_step_part_and_process_alone(study_context):
    ctx = study_context(TINY, "seeds=2")
    first, second = create_students(ctx, [run for run in plan(ctx) if run.arm.name == "hard"])
    one_process = train_context(ctx)
    process_1 = train_context(ctx, FakeDistributed(rank=1))

    def draw(student, global_step, part, train_ctx):
        torch.rand(3)  # what was drawn before has no influence
        seed_dropout(student, global_step, part, train_ctx)
        return torch.rand(4)

    arguments = [
        (first, 5, 0, one_process),
        (second, 5, 0, one_process),
        (first, 6, 0, one_process),
        (first, 5, 1, one_process),
        (first, 5, 0, process_1),
    ]
    draws = [draw(*own) for own in arguments]
    for own, drawn in zip(arguments, draws, strict=True):
        assert torch.equal(draw(*own), drawn)
    assert len({tuple(drawn.tolist()) for drawn in draws}) == len(draws)


def test_views_are_a_function_of_seed_epoch_and_step(study_context):
    """A batch that is read after an interruption is the one that would have been read."""
    ctx = study_context(TINY)
    arguments = (ctx.splits, run_of(ctx, "hard").arm.augment, 128, 0, 1, torch.device("cpu"))
    whole = list(training_batches(*arguments))
    rest = list(training_batches(*arguments, first=5))
    assert len(whole) == 8
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert torch.equal(ours.views, theirs.views)
        assert torch.equal(ours.labels, theirs.labels)
