"""What a recipe does that is known to go wrong, or to mean something else than it seems: told, not forbidden."""

from collections.abc import Iterator
from typing import Any

from distill.losses import TERMS, optimal_logit_gap
from distill.recipe import Arm, Recipe, term_model

SMOOTHERS = ("confidence_penalty", "max_sup", "mbls", "online_smoothing", "zipf")


def advise(recipe: Recipe, classes: int) -> list[str]:
    """Sentences on the arms of a recipe, each with its reason and source; arms with the same fault share one."""
    found: dict[str, list[str]] = {}
    for arm in recipe.teachers + recipe.students:
        for sentence in (*_smoothed_teacher(recipe, arm), *_smoothed_twice(arm), *_uniform(arm, classes),
                         *_out_of_reach(arm, classes)):
            found.setdefault(sentence, []).append(arm.name)
    return [f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: {sentence}"
            for sentence, names in found.items()]


def _settings(arm: Arm, name: str) -> dict[str, Any]:
    return term_model(TERMS[name])(**arm.loss[name]).model_dump()


def _smoothed_teacher(recipe: Recipe, arm: Arm) -> Iterator[str]:
    """Müller et al. 2019, section 4; Chandrasegaran et al. 2022."""
    smoothed = [name for name in arm.teachers
                if (recipe.arm(name).loss or {}).get("cross_entropy", {}).get("smoothing", 0) > 0]
    hot = [name for name in arm.loss or () if "temperature" in term_model(TERMS[name]).model_fields
           and _settings(arm, name)["temperature"] > 1]
    if smoothed and hot:
        yield ("learns from a smoothed teacher at a temperature above 1, which smooths its answers further and can "
               "undo what they tell of the classes (Müller et al. 2019; Chandrasegaran et al. 2022); gamma shows by "
               "how much, and T = 1 is the usual remedy")


def _smoothed_twice(arm: Arm) -> Iterator[str]:
    loss = arm.loss or {}
    others = [name for name in SMOOTHERS if name in loss]
    if others and loss.get("cross_entropy", {}).get("smoothing", 0) > 0:
        yield f"cross_entropy is smoothed and {others[0]} smooths as well; to compare them, leave one out"


def _uniform(arm: Arm, classes: int) -> Iterator[str]:
    settings = (arm.loss or {}).get("cross_entropy", {})
    highest = (classes - 1) / classes if settings.get("over") == "others" else 1
    if "prior" not in settings and settings.get("smoothing", 0) >= highest:
        yield "its smoothed targets are uniform, so the labels teach it nothing"


def _out_of_reach(arm: Arm, classes: int) -> Iterator[str]:
    """The largest gap of s·cos logits is that of templates on a simplex, with features at their templates."""
    scale = arm.model_args.get("scale", 16.0) if arm.model == "cosine_head" else 0
    for name, settings in (arm.loss or {}).items() if scale else ():
        smoothing = settings.get("smoothing", 0)
        margin = _settings(arm, name).get("margin", 0) if name == "am_softmax" else 0
        largest = scale * (classes / (classes - 1) - margin)
        if smoothing and largest < optimal_logit_gap(classes, smoothing):
            yield (f"{name} with smoothing {smoothing:g} wants a logit gap of "
                   f"{optimal_logit_gap(classes, smoothing):.1f}, but a cosine head of scale {scale:g} allows "
                   f"{max(largest, 0):.1f} at most: take a larger scale")
