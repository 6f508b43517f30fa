"""What a recipe does that is known to go wrong, or to mean something else than it seems: told, not forbidden."""

import math
from collections.abc import Iterator
from typing import Any

from distill.data.splits import Splits
from distill.errors import pluralize
from distill.losses import LOSSES, optimal_logit_gap
from distill.recipe.loss_terms import loss_settings_model
from distill.recipe.schema import Arm, Recipe

FEW_IMAGES = 100
SMOOTHERS = ("confidence_penalty", "max_sup", "mbls", "online_smoothing", "zipf")


def describe_data(splits: Splits) -> list[str]:
    """Sentences on the images of a study: what was left out or held out, and what they are too few for."""
    notes = [f"data: {note}" for note in splits.notes]
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        counts = split.labels.bincount(minlength=len(splits.class_names))
        absent = [
            splits.class_names[i]
            for i in (counts == 0).nonzero()[:, 0].tolist()
            if not (splits.settings.background and i == 0)
        ]
        if absent:
            more = f" and {len(absent) - 5} others" if len(absent) > 5 else ""
            notes.append(
                f"data: no image of {', '.join(map(repr, absent[:5]))}{more} is in the {name} split: nothing "
                "is known of how well they are told apart"
            )
        if len(split) < FEW_IMAGES:
            notes.append(
                f"data: the {name} split has {pluralize(len(split), 'image')}: one of them is "
                f"{100 / len(split):.1f} points of accuracy"
            )
    return notes


def lint_recipe(recipe: Recipe, classes: int) -> list[str]:
    """Sentences on the arms of a recipe, each with its reason and source; arms with the same fault share one."""
    found: dict[str, list[str]] = {}
    for arm in recipe.arms:
        terms = {
            name: loss_settings_model(LOSSES[name])(**settings).model_dump()
            for name, settings in (arm.loss or {}).items()
        }
        for sentence in (
            *_smoothed_teacher(recipe, arm, terms),
            *_smoothed_twice(terms),
            *_uniform(terms, classes),
            *_out_of_reach(arm, terms, classes),
        ):
            found.setdefault(sentence, []).append(arm.name)
    return [
        f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: {sentence}"
        for sentence, names in found.items()
    ]


def _smoothed(terms: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, settings in terms.items() if settings.get("smoothing", 0) > 0]


def _smoothed_teacher(recipe: Recipe, arm: Arm, terms: dict[str, dict[str, Any]]) -> Iterator[str]:
    smoothed = any(_smoothed(recipe.arm(name).loss or {}) for name in arm.teachers)
    hottest = max(
        (
            t
            for settings in terms.values()
            for key in ("temperature", "final_temperature")
            if (t := settings.get(key))
        ),
        default=1,
    )
    if smoothed and hottest > 1:
        yield (
            "learns from a smoothed teacher at a temperature above 1, which smooths its answers further; smoothed "
            "teachers have told their students less of the classes (Müller et al. 2019), and more so the higher "
            "the temperature (Chandrasegaran et al. 2022). gamma shows by how much; T = 1 is the usual remedy"
        )


def _smoothed_twice(terms: dict[str, dict[str, Any]]) -> Iterator[str]:
    smoothed, others = _smoothed(terms), [name for name in SMOOTHERS if name in terms]
    if smoothed and others:
        yield f"{smoothed[0]} is smoothed and {others[0]} smooths as well; to compare them, leave one out"


def _uniform(terms: dict[str, dict[str, Any]], classes: int) -> Iterator[str]:
    for name in _smoothed(terms):
        settings = terms[name]
        highest = (classes - 1) / classes if settings.get("smooth_over") == "wrong" else 1
        if not settings.get("prior") and settings["smoothing"] >= highest:
            yield f"the smoothed targets of {name} are uniform, so the labels teach it nothing"


def _out_of_reach(arm: Arm, terms: dict[str, dict[str, Any]], classes: int) -> Iterator[str]:
    """The largest gap of s·cos logits is that of features at their templates, and templates on a simplex."""
    scale = arm.model_args.get("scale", 16.0) if arm.model == "cosine_head" and classes > 1 else 0
    for name in _smoothed(terms) if scale else ():
        settings = terms[name]
        margin = settings.get("margin", 0)
        own = {
            "arcface": scale * math.cos(margin),
            "am_softmax": scale * (1 - margin),
            "sm_softmax": scale - margin,
        }
        largest = own.get(name, scale) + scale / (classes - 1)
        wanted = optimal_logit_gap(
            classes, min(settings["smoothing"], 1), settings.get("smooth_over", "all")
        )
        if largest < wanted:
            yield (
                f"{name} with smoothing {settings['smoothing']:g} wants a logit gap of {wanted:.1f}, but a cosine "
                f"head of scale {scale:g} allows {max(largest, 0):.1f} at most: take a larger scale"
            )
