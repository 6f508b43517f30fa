"""Warnings about recipes and data: which arms they name, and with which numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.recipes import TINY, make_recipe, merge

from distill.data.splits import load_splits
from distill.study.lint import describe_data, lint_recipe


def images(classes=10, count=100):
    """Return what the warnings need of a study's images: classes and the number of images."""
    return SimpleNamespace(class_names=list(map(str, range(classes))), train=range(count))


def lint(loss, classes=10, model="mlp_16", teacher=None, teacher_loss=None):
    """Return the warnings about a student `s`."""
    student = {"model": model, "loss": loss}
    if teacher_loss:
        student["teacher"] = "t"
    recipe = {
        "data": TINY["data"],
        "train": TINY["train"],
        "teachers": {"t": {"model": "mlp_16", "loss": teacher_loss or {"cross_entropy": {}}}},
        "students": {"s": student},
    }
    return lint_recipe(make_recipe(recipe), images(classes))


@pytest.mark.parametrize("term", ["cross_entropy", "poly1", "sm_softmax"])
@pytest.mark.parametrize(
    ("loss", "is_hot"),
    [
        ({"kd": {"temperature": 4}}, True),
        ({"kd": {"temperature": 1, "final_temperature": 8}}, True),
        ({"dkd": {"temperature": 2}}, True),
        ({"kd": {"temperature": 1}}, False),
        ({"logit_mse": {}}, False),
    ],
)
def test_a_smoothed_teacher_at_a_high_temperature_is_warned_of(term, loss, is_hot):
    notes = lint(loss, teacher_loss={term: {"smoothing": 0.1}})
    assert len(notes) == is_hot
    assert all(note.startswith("s: ") for note in notes)
    assert lint(loss, teacher_loss={term: {}}) == []


def test_arms_with_the_same_problem_share_a_note():
    document = merge(TINY, {"students": {"distilled": {"loss": {"kd": {"temperature": [2, 4]}}}}})
    document["teachers"]["hard"]["loss"] = {"cross_entropy": {"smoothing": 0.1}}
    (note,) = lint_recipe(make_recipe(document), images())
    names = "distilled/temperature=2, distilled/temperature=4: "
    assert note.startswith(names)


def test_two_ways_of_smoothing_are_both_named():
    (note,) = lint({"cross_entropy": {"smoothing": 0.1}, "max_sup": {"weight": 0.1}})
    assert "cross_entropy" in note
    assert "max_sup" in note


@pytest.mark.parametrize(
    ("settings", "is_uniform"),
    [
        ({"smoothing": 1}, True),
        ({"smoothing": 0.9}, False),
        ({"smoothing": 0.9, "smooth_over": "wrong"}, True),
        ({"smoothing": 0.8, "smooth_over": "wrong"}, False),
    ],
)
def test_targets_that_are_uniform_are_warned_of(settings, is_uniform):
    notes = lint({"cross_entropy": settings})
    assert len(notes) == is_uniform
    assert all("uniform" in note for note in notes)


@pytest.mark.parametrize(
    ("loss", "scale", "classes", "largest"),
    [
        # None where the gap is within reach
        ({"arcface": {"margin": 0.5, "smoothing": 0.1}}, 4.4, 10, 4.4 * (math.cos(0.5) + 1 / 9)),
        ({"arcface": {"margin": 0.5, "smoothing": 0.1}}, 4.6, 10, None),
        ({"am_softmax": {"margin": 0.2, "smoothing": 0.1}}, 2.0, 10, 2 * (10 / 9 - 0.2)),
        ({"sm_softmax": {"margin": 2, "smoothing": 0.1}}, 5.0, 10, 5 * 10 / 9 - 2),
        ({"cross_entropy": {"smooth_over": "wrong", "smoothing": 0.1}}, 1.2, 2, None),
        ({"cross_entropy": {"smoothing": 0.1}}, 1.2, 2, 2.4),
    ],
)
def test_a_logit_gap_that_a_cosine_head_cannot_reach_is_warned_of(loss, scale, classes, largest):
    notes = lint(loss, classes, {"name": "cosine_head", "base": "mlp_16", "scale": scale})
    if largest is None:
        assert notes == []
        return
    wanted = math.log((classes - (classes - 1) * 0.1) / 0.1)
    (note,) = notes
    assert f"{wanted:.1f}" in note
    assert f"{largest:.1f}" in note


def test_splits_with_few_images_and_absent_classes_are_described():
    splits = load_splits(make_recipe(TINY).data)
    keep = torch.arange(len(splits.test))[splits.test.labels != 3][:50]
    splits.test.positions = splits.test.positions[keep]
    notes = [note for note in describe_data(splits) if "test split has" in note]
    assert len(notes) == 2
    assert "'3'" in notes[0]
    assert "50" in notes[1]
    assert "2.0 points" in notes[1]
