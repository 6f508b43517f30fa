"""The teacher is frozen, gives what students need, and is checked before they start."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_images import IMAGES
from helpers.training import create_students, fit, load_teachers, run_of, same, train_run
from torch import nn

from distill.errors import UserError
from distill.training.teacher import Teacher, at_chance, check_teacher


def test_a_teacher_stays_frozen_while_its_student_trains(study_context):
    """Its batch statistics too, even if somebody calls train()."""
    ctx = study_context(IMAGES, "train.epochs=1")
    before = train_run(ctx, "hard")
    run = run_of(ctx, "distilled")
    teachers = load_teachers(ctx, [run])
    [teacher] = teachers.values()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())

    [student] = create_students(ctx, [run], teachers)
    fit(ctx, [student], teachers)
    assert same(teacher.model.state_dict(), before)
    assert not same(student.model.state_dict(), before)
    assert not any(module.training for module in teacher.modules())


def test_a_network_in_training_mode_becomes_a_teacher_without_dropout():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    images = torch.randn(8, 4)
    assert torch.equal(Teacher(network)(images).logits, network[0](images))


def test_a_teacher_gives_logits_without_gradients():
    images = torch.randn(2, 4, requires_grad=True)
    outputs = Teacher(nn.Linear(4, 3))(images)
    assert not outputs.logits.requires_grad
    assert outputs.features is None


def test_in_half_precision_a_teacher_computes_and_stores_its_layers_in_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    images = torch.randn(5, 4)
    exact = model(images)
    teacher = Teacher(model, half_precision=torch.bfloat16)
    logits = teacher(images).logits
    assert logits.dtype == torch.bfloat16
    assert model[0].weight.dtype == torch.bfloat16
    assert model[1].weight.dtype == torch.float32
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05)


def test_a_teacher_whose_features_are_captured_is_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    model = nn.Linear(4, 3)
    Teacher(model, {"features"}, compiled=True)
    Teacher(model, compiled=False)
    assert compiled == []
    Teacher(model, compiled=True)
    assert len(compiled) == 1


# ---------------------------------------------------------------------------------- is it any good


def predictions(correct: int, total: int, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of which `correct` are right, and labels of balanced classes."""
    labels = torch.arange(total) % classes
    predicted = torch.where(torch.arange(total) < correct, labels, (labels + 1) % classes)
    return F.one_hot(predicted, classes).float(), labels


def test_a_teacher_no_better_than_chance_is_refused():
    check_teacher("good", *predictions(300, 300))
    constant = F.one_hot(torch.zeros(300).long(), 10).float()
    with pytest.raises(UserError) as caught:
        check_teacher("bad one", constant, torch.arange(300) % 10)
    for fact in ("bad one", "10.0%", "300", "check_teachers=false"):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    [
        # Of 300 trials at 0.1, P(X >= 43) = 0.0106 and P(X >= 44) = 0.0066.
        (30, 300, True),
        (43, 300, True),
        (44, 300, False),
        # With fewer than 100 images P < 0.5 is enough: P(X >= 5) = 0.57, P(X >= 6) = 0.38.
        (5, 50, True),
        (6, 50, False),
    ],
)
def test_chance_is_a_binomial_test(correct, total, expected):
    assert at_chance(*predictions(correct, total)) is expected


def test_chance_is_the_share_of_the_most_frequent_class():
    """90 of 100 right is chance where 90 labels are equal."""
    labels = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    always_zero = F.one_hot(torch.zeros(100).long(), 2).float()
    assert at_chance(always_zero, labels)
    assert not at_chance(F.one_hot(labels, 2).float(), labels)


def test_too_few_images_decide_nothing():
    """A perfect network would be right on 3 images of 3 classes by chance with 1/27 > 0.01."""
    labels = torch.arange(3)
    assert not at_chance(F.one_hot((labels + 1) % 3, 3).float(), labels)
    labels = torch.arange(6) % 3  # 1/729 < 0.01
    assert at_chance(F.one_hot((labels + 1) % 3, 3).float(), labels)
