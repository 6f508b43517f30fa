"""Schedules and averages that do not fit the length of training are noted, with their numbers."""

import pytest
from helpers.recipes import TINY, make_recipe, merge

from distill.study.schedule_lint import average_notes, schedule_notes


def arm(**train):
    return make_recipe(merge(TINY, {"train": train})).students[0]


def notes(steps=20, **train):
    return list(schedule_notes(arm(**train), steps))


@pytest.mark.parametrize(
    ("schedule", "epochs", "fact"),
    [
        ({"name": "cosine", "warmup_epochs": 50}, 8, "50 epochs does not end within the 8"),
        ({"name": "cosine", "warmup_epochs": 8}, 8, "8 epochs does not end"),
        ({"name": "cosine", "cooldown_epochs": 5}, 8, "cool-down"),
        ("step", 8, "'step' does not change"),
        ({"name": "step", "decay_epochs": 8}, 8, "does not change"),
        ({"name": "multistep", "decay_milestones": [4, 30]}, 8, "epoch 30"),
        ({"name": "multistep", "decay_milestones": [100]}, 8, "epoch 100"),
    ],
)
def test_what_training_never_reaches_is_noted(schedule, epochs, fact):
    (note,) = notes(schedule=schedule, epochs=epochs)
    assert fact in note


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        ("cosine", 8),
        ("none", 8),
        ({"name": "cosine", "warmup_epochs": 7}, 8),
        ({"name": "step", "decay_epochs": 7}, 8),
        ({"name": "multistep", "decay_milestones": [4, 6]}, 8),
        ("cosine", 1),
    ],
)
def test_schedules_that_do_their_work_are_not_noted(schedule, epochs):
    assert notes(schedule=schedule, epochs=epochs) == []


@pytest.mark.parametrize(
    ("decay", "steps", "is_noted"),
    [
        (0.9999, 15, True),  # 0.9985 of the average
        (0.99, 230, False),  # 0.0991
        (0.99, 229, True),  # 0.1001
        (None, 15, False),
    ],
)
def test_an_average_that_outlives_training_is_noted(decay, steps, is_noted):
    train = arm(epochs=1, ema=decay).train
    found = list(average_notes(train, steps))
    assert len(found) == is_noted
    if found:
        assert f"{decay**steps:.0%}" in found[0]
        advised = float(found[0].partition("train.ema=")[2].split()[0])
        assert advised**steps < 1e-3
