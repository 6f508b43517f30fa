"""Which arms of a study answer a question, and what they answer, seed by seed."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distill.evaluation.statistics import compare, holm, mean_interval
from distill.losses import LOSSES
from distill.recipe.loss_terms import loss_settings_model, needs_teacher
from distill.recipe.schema import NOT_IN_FINGERPRINT, Arm, Recipe

METRICS = ("top1", "nll", "ece")
DISTILLED = "Does distillation help the student?"
ANOTHER_LOSS = "Is the loss better than plain cross-entropy?"
ANOTHER_KD = "Is the loss better than kd?"
TEACHER_SMOOTHING = "Does label smoothing in the teacher help its student?"
QUESTIONS = {
    ("student", "loss.cross_entropy.smoothing"): "Does label smoothing help the student?",
    ("teacher", "loss.cross_entropy.smoothing"): "Does label smoothing help the teacher itself?",
    ("student", "loss.kd.temperature"): "Does a higher temperature help the student?",
    ("student", "model"): "Which student is better?",
    ("teacher", "model"): "Which teacher is better?",
    ("student", "teacher"): "Which teacher has the better student?",
}
SMOOTHING = (
    TEACHER_SMOOTHING,
    QUESTIONS["student", "loss.cross_entropy.smoothing"],
    QUESTIONS["teacher", "loss.cross_entropy.smoothing"],
)


def find_pairs(recipe: Recipe) -> list[tuple[str, Arm, Arm]]:
    """``(question, a, b)`` for every two arms that differ in one thing; of more than two, against the first:
    the smallest number, the least smoothed teacher. Students whose teachers differ in smoothing and in more do
    not compare.

    A student alone and a distilled one differ in more than one key but in one thing, the teacher: they
    compare if all the rest is equal, with the smoothing that the distilled student's own labels have. So do
    students alone with other losses and the one with plain cross-entropy, and students of one teacher with
    other losses and the one with kd.
    """
    pairs = []
    for role, arms in (
        ("student", recipe.students),
        ("teacher", [a for a in recipe.teachers if not a.frozen]),
    ):
        flat = {arm.name: _flat(arm) for arm in arms}
        keys = sorted({key for settings in flat.values() for key in settings})
        for key in keys:
            groups: dict[str, list[Arm]] = {}
            for arm in arms:
                rest = {k: v for k, v in flat[arm.name].items() if k != key}
                if key in flat[arm.name]:
                    groups.setdefault(json.dumps(rest, sort_keys=True), []).append(arm)
            for group in groups.values():
                group.sort(key=lambda arm: _amount(recipe, key, flat[arm.name][key]))
                for first, *others in _alike(recipe, key, group):
                    pairs += [
                        (_question(recipe, role, key, first, other), first, other)
                        for other in others
                    ]
        if role == "student":
            pairs += _alone_and_distilled(arms)
            known = {(a.name, b.name) for _, a, b in pairs}
            pairs += [pair for pair in _losses(arms) if (pair[1].name, pair[2].name) not in known]
    return pairs


def _amount(recipe: Recipe, key: str, value: Any) -> float:
    """Where a value stands on its axis: numbers by size, teachers by their smoothing, the rest as written."""
    if key == "teacher" and value:
        losses = [recipe.arm(name).loss or {} for name in value]
        value = max(loss.get("cross_entropy", {}).get("smoothing", 0.0) for loss in losses)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _alike(recipe: Recipe, key: str, group: list[Arm]) -> list[list[Arm]]:
    """The arms to compare, each list with its first: students whose teachers differ in smoothing, or in all else."""
    if key != "teacher":
        return [group]
    kinds: dict[str, list[Arm]] = {}
    smoothings: dict[float, dict[str, Arm]] = {}
    for arm in group:
        teachers = [_flat(recipe.arm(name)) for name in arm.teachers]
        kind = json.dumps(
            [
                {k: v for k, v in flat.items() if k != "loss.cross_entropy.smoothing"}
                for flat in teachers
            ],
            sort_keys=True,
        )
        kinds.setdefault(kind, []).append(arm)
        smoothings.setdefault(_amount(recipe, key, arm.teachers), {}).setdefault(kind, arm)
    return [*kinds.values(), *(list(alike.values()) for alike in smoothings.values())]


def _alone_and_distilled(arms: list[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    rest = {arm.name: _but_loss(arm) for arm in arms}
    alone = [arm for arm in arms if not arm.teachers and set(arm.loss) == {"cross_entropy"}]
    for arm in arms:
        if arm.teachers and all(
            name == "cross_entropy" or needs_teacher(LOSSES[name]) for name in arm.loss
        ):
            own = arm.loss.get("cross_entropy", {}).get("smoothing", 0.0)
            base = next(
                (
                    a
                    for a in alone
                    if rest[a.name] == rest[arm.name]
                    and a.loss["cross_entropy"].get("smoothing", 0.0) == own
                ),
                None,
            )
            if base:
                yield DISTILLED, base, arm


def _losses(arms: list[Arm]) -> Iterator[tuple[str, Arm, Arm]]:
    """Students with other losses, against the one with plain cross-entropy, or of the same teacher with kd."""
    bases: dict[tuple[Any, str], Arm] = {}
    for arm in arms:
        plain = (
            "kd" in arm.loss and set(arm.loss) <= {"kd", "cross_entropy"}
            if arm.teachers
            else arm.loss
            == {"cross_entropy": loss_settings_model(LOSSES["cross_entropy"])().model_dump()}
        )
        if plain:
            bases.setdefault((arm.teachers, _but_loss(arm)), arm)
    for arm in arms:
        base = bases.get((arm.teachers, _but_loss(arm)))
        if base and (set(base.loss) != set(arm.loss) or (not arm.teachers and base is not arm)):
            yield ANOTHER_KD if arm.teachers else ANOTHER_LOSS, base, arm


def _but_loss(arm: Arm) -> str:
    """All but the loss and its teacher, to be equal or not; a cosine head belongs to the loss that needs it."""
    args = {k: v for k, v in arm.model_args.items() if k not in ("base", "scale")}
    model = (
        [arm.model_args["base"], args]
        if arm.model == "cosine_head" and "base" in arm.model_args
        else [arm.model, arm.model_args]
    )
    kept = {
        k: v
        for k, v in _flat(arm).items()
        if k not in ("teacher", "model") and not k.startswith("loss.")
    }
    return json.dumps([model, kept], sort_keys=True)


def _flat(arm: Arm) -> dict[str, Any]:
    """An arm's settings by dotted key, defaults filled in, so that two arms can be laid side by side."""
    flat: dict[str, Any] = {
        "model": arm.model + json.dumps(arm.model_args, sort_keys=True),
        "teacher": list(arm.teachers),
        "start": [arm.pretrained, arm.checkpoint],
    }
    for name, settings in (arm.loss or {}).items():
        full = loss_settings_model(LOSSES[name])(**settings).model_dump()
        flat |= {f"loss.{name}.{key}": value for key, value in full.items()}
    flat |= {
        f"train.{key}": value
        for key, value in arm.train.model_dump(exclude=NOT_IN_FINGERPRINT).items()
    }
    return flat | {f"augment.{key}": value for key, value in arm.augment.model_dump().items()}


def _question(recipe: Recipe, role: str, key: str, a: Arm, b: Arm) -> str:
    if key == "teacher" and len(a.teachers) == len(b.teachers) == 1:
        first, second = (_flat(recipe.arm(arm.teachers[0])) for arm in (a, b))
        differing = {k for k in first | second if first.get(k) != second.get(k)}
        if differing == {"loss.cross_entropy.smoothing"}:
            return TEACHER_SMOOTHING
    question = QUESTIONS.get((role, key), f"What does {key} change for the {role}?")
    more = key == "loss.cross_entropy.smoothing" and _flat(a)[key] > 0
    return question.replace("label smoothing", "more label smoothing") if more else question


def compare_arms(
    recipe: Recipe,
    runs: list[dict[str, Any]],
    right: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """The comparisons of `results.json`: paired differences b - a on the test split.

    `p_value` is of the single comparison, `p_holm` adjusted for all comparisons of the study that test the
    same metric. Both, like `ci95`, are over seeds: what other seeds would do on these test images.
    `ci95_images`, of accuracies, is over images: what these networks would do on others.

    Args:
        recipe: of the study.
        runs: of `results.json`.
        right: whether each test image was classified rightly, by run: ``[N]`` each, in one order.
    """
    by_arm = {(run["arm"], run["seed"]): run["metrics"]["test"] for run in runs}
    ids = {(run["arm"], run["seed"]): run["id"] for run in runs} if right else {}
    result = []
    for question, a, b in find_pairs(recipe):
        seeds = [
            seed for seed in recipe.seeds if (a.name, seed) in by_arm and (b.name, seed) in by_arm
        ]
        for metric in METRICS if seeds else ():
            paired = compare(
                *([by_arm[arm.name, seed][metric] for seed in seeds] for arm in (a, b))
            )
            images = (
                [np.mean([right[ids[arm.name, seed]] for seed in seeds], 0) for arm in (a, b)]
                if right and metric == "top1"
                else None
            )
            over_images = compare(*images).ci95 if images else None
            result.append(
                {
                    "question": question,
                    "a": a.name,
                    "b": b.name,
                    "metric": metric,
                    **paired._asdict(),
                    "ci95": paired.ci95 and list(paired.ci95),
                    "ci95_images": over_images and list(over_images),
                    "seeds": len(seeds),
                }
            )
    for metric in METRICS:
        own = [c for c in result if c["metric"] == metric]
        for comparison, adjusted in zip(own, holm([c["p_value"] for c in own]), strict=True):
            comparison["p_holm"] = adjusted
    return result


def rank_students(recipe: Recipe, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The students by mean test accuracy, best first, each with the paired difference to the best.

    The best is picked by these same numbers, so it is as if all S (S - 1) / 2 pairs had been tested:
    `p_adjusted` and `difference_ci` hold for all of them at once (Bonferroni, 95% in all). Both are None for the
    best, with one seed, and where there is no spread.
    """
    names = list(dict.fromkeys(run["arm"] for run in runs if run["role"] == "student"))
    top1 = {(run["arm"], run["seed"]): run["metrics"]["test"]["top1"] for run in runs}
    values = {name: [top1[name, seed] for seed in recipe.seeds] for name in names}
    names.sort(key=lambda name: -sum(values[name]))
    pairs = max(1, math.comb(len(names), 2))
    rows = []
    for rank, name in enumerate(names, 1):
        mean, sd, interval = mean_interval(values[name])
        test = compare(values[names[0]], values[name], level=1 - 0.05 / pairs)
        rows.append(
            {
                "rank": rank,
                "arm": name,
                "mean": mean,
                "sd": sd,
                "ci95": interval,
                "difference": test.difference,
                "difference_ci": test.ci95,
                "p_adjusted": None if test.p_value is None else min(1.0, pairs * test.p_value),
            }
        )
    return rows


def answer(comparison: dict[str, Any]) -> str:
    """A comparison of accuracies in words: by how much, how sure, and when that cannot be said."""
    points = 100 * comparison["difference"]
    if comparison["seeds"] < 2:
        return f"{points:+.2f} points with one seed: chance alone may do this, so it answers nothing yet"
    if comparison["ci95"] is None:
        return f"{points:+.2f} points in every one of {comparison['seeds']} seeds: no spread to evaluate_network it by"
    low, high = (100 * bound for bound in comparison["ci95"])
    size = f"{points:+.2f} points (95% interval {low:+.2f} to {high:+.2f}, {comparison['seeds']} seeds)"
    few = "; fewer than 3 seeds say little" if comparison["seeds"] < 3 else ""
    verdict = "no difference that these seeds can show"
    if low > 0 or high < 0:
        sure = comparison.get("p_holm", 1.0) < 0.05
        words = (
            ("yes", "no, it hurts")
            if comparison["question"].startswith("Does")
            else ("b is better", "b is worse")
        )
        verdict = ("" if sure else "not sure among so many comparisons, but perhaps ") + words[
            points < 0
        ]
    images = comparison.get("ci95_images") or (low, high)
    other = (
        "; other test images may say otherwise"
        if (low > 0 or high < 0) and images[0] <= 0 <= images[1]
        else ""
    )
    return f"{verdict}: {size}{few}{other}"
