"""Warn of a study with too few data, or with settings that are known to mislead."""

import math
from collections.abc import Iterator
from typing import Any

from distill.data.splits import Split, Splits
from distill.errors import pluralize
from distill.losses import optimal_logit_gap
from distill.recipe.schema import Arm, Recipe
from distill.study.schedule_lint import average_notes, schedule_notes
from distill.training.state import steps_per_epoch

FEW_IMAGES = 100  # with fewer, one image changes accuracy by more than a point
MOST_NAMES = 5  # class names that a note lists
MOST_ARMS = 3  # arm names that a note lists
# terms that have no setting `smoothing` but also keep a network from being too confident
OTHER_SMOOTHERS = ("confidence_penalty", "max_sup", "mbls", "online_smoothing", "zipf")
DEFAULT_SCALE = 16.0  # of a cosine head

Loss = dict[str, dict[str, Any]]


def describe_data(splits: Splits) -> list[str]:
    """Return notes on a study's images: left out, held out, or too few."""
    notes = [f"data: {note}" for note in splits.notes]
    unlearnt = _absent_classes(splits, splits.train)
    if unlearnt:
        notes.append(
            f"data: the training split has no image of {_listed_classes(unlearnt)}, so "
            f"{'this class' if len(unlearnt) == 1 else 'these classes'} cannot be learnt"
        )
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        absent = _absent_classes(splits, split)
        if absent:
            notes.append(
                f"data: the {name} split has no image of {_listed_classes(absent)}, so accuracy on "
                f"{'this class' if len(absent) == 1 else 'these classes'} is unknown"
            )
        if len(split) < FEW_IMAGES:
            notes.append(
                f"data: the {name} split has {pluralize(len(split), 'image')}, so a single image "
                f"changes accuracy by {100 / len(split):.1f} points"
            )
    return notes


def lint_recipe(recipe: Recipe, splits: Splits) -> list[str]:
    """Return warnings about the arms of a recipe, each with its reason.

    Args:
        recipe: the study's recipe.
        splits: the study's images.

    Returns:
        one note per problem, which begins with the names of the arms that have it.
    """
    arms_by_warning: dict[str, list[str]] = {}
    for arm in recipe.arms:
        for warning in _warnings(recipe, arm, splits):
            arms_by_warning.setdefault(warning, []).append(arm.name)
    notes = []
    for warning, names in arms_by_warning.items():
        listed = ", ".join(names[:MOST_ARMS])
        if len(names) > MOST_ARMS:
            listed += " and others"
        notes.append(f"{listed}: {warning}")
    return notes


def _listed_classes(names: list[str]) -> str:
    """Return the first names of classes, in quotes, and how many more there are."""
    listed = ", ".join(map(repr, names[:MOST_NAMES]))
    others = len(names) - MOST_NAMES
    return f"{listed} and {others} others" if others > 0 else listed


def _absent_classes(splits: Splits, split: Split) -> list[str]:
    """Return the names of classes without an image in a split."""
    counts = split.labels.bincount(minlength=len(splits.class_names)).tolist()
    absent = []
    for index, count in enumerate(counts):
        is_background = splits.settings.background and index == 0
        if count == 0 and not is_background:
            absent.append(splits.class_names[index])
    return absent


def _warnings(recipe: Recipe, arm: Arm, splits: Splits) -> Iterator[str]:
    classes = len(splits.class_names)
    loss = arm.loss or {}
    if not arm.frozen:
        steps = steps_per_epoch(splits, arm.train)
        yield from schedule_notes(arm, steps)
        yield from average_notes(arm.train, steps)
    yield from _smoothed_teacher(recipe, arm)
    yield from _smoothed_twice(loss)
    yield from _uniform_targets(loss, classes)
    yield from _unreachable_gap(arm, loss, classes)


def _smoothed_terms(loss: Loss) -> list[str]:
    """Return the names of the terms with label smoothing."""
    return [name for name, settings in loss.items() if settings.get("smoothing", 0) > 0]


def _highest_temperature(loss: Loss) -> float:
    """Return the highest temperature of any term, at any time in training; 1 without one."""
    highest = 1.0
    for settings in loss.values():
        for key in ("temperature", "final_temperature"):
            highest = max(highest, settings.get(key) or 1.0)
    return highest


def _smoothed_teacher(recipe: Recipe, arm: Arm) -> Iterator[str]:
    has_smoothed_teacher = False
    for name in arm.teachers:
        if _smoothed_terms(recipe.arm(name).loss or {}):
            has_smoothed_teacher = True
    if has_smoothed_teacher and _highest_temperature(arm.loss or {}) > 1:
        yield (
            "this student learns from a label-smoothed teacher at T > 1. Smoothing removes "
            "class-similarity information from the teacher's logits (Müller et al. 2019), and "
            "temperature makes it worse (Chandrasegaran et al. 2022); the effective smoothing γ "
            "in the report shows by how much. Use T = 1 or a teacher without smoothing"
        )


def _smoothed_twice(loss: Loss) -> Iterator[str]:
    smoothed = _smoothed_terms(loss)
    others = [name for name in OTHER_SMOOTHERS if name in loss]
    if smoothed and others:
        yield (
            f"{smoothed[0]} has label smoothing, and {others[0]} smooths as well. "
            "Remove one of them to tell their effects apart"
        )


def _uniform_targets(loss: Loss, classes: int) -> Iterator[str]:
    for name in _smoothed_terms(loss):
        settings = loss[name]
        uniform_at = 1.0
        if settings.get("smooth_over") == "wrong":
            uniform_at = (classes - 1) / classes
        if not settings.get("prior") and settings["smoothing"] >= uniform_at:
            yield (
                f"the smoothed targets of {name} are uniform, so the labels have no effect. "
                f"Use a smoothing below {uniform_at:g}"
            )


def _unreachable_gap(arm: Arm, loss: Loss, classes: int) -> Iterator[str]:
    """Warn of smoothing whose optimal logit gap is larger than a cosine head can reach.

    Logits s·cos have the largest gap if every feature points along its template and the templates
    form a simplex.
    """
    if arm.model != "cosine_head" or classes < 2:
        return
    scale = arm.model_args.get("scale", DEFAULT_SCALE)
    if not scale:
        return
    for name in _smoothed_terms(loss):
        settings = loss[name]
        largest = _largest_own_logit(name, settings, scale) + scale / (classes - 1)
        smoothing = settings["smoothing"]
        wanted = optimal_logit_gap(classes, min(smoothing, 1), settings.get("smooth_over", "all"))
        if largest < wanted:
            yield (
                f"{name} with smoothing {smoothing:g} has its optimum at a logit gap of "
                f"{wanted:.1f}, but a cosine head of scale {scale:g} reaches "
                f"{max(largest, 0):.1f} at most. Use a larger scale"
            )


def _largest_own_logit(name: str, settings: dict[str, Any], scale: float) -> float:
    """Return the label's logit for a feature along its template, after the margin of the term."""
    margin = settings.get("margin", 0)
    if name == "arcface":
        return scale * math.cos(margin)
    if name == "am_softmax":
        return scale * (1 - margin)
    if name == "sm_softmax":
        return scale - margin
    return scale
