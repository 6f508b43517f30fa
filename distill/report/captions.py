"""What each figure says, in a sentence computed from the runs and their uncertainty, never assumed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from distill.evaluation.comparisons import QUESTIONS, TEACHER_SMOOTHING
from distill.evaluation.statistics import Paired, compare, mean_interval
from distill.report.tables import last_information

Run = dict[str, Any]
Value = Callable[[Run], float | None]
TIGHT = "within_between_templates"  # in the space that the pictures' planes lie in
HELPS_TEACHER = QUESTIONS["teacher", "loss.cross_entropy.smoothing"]
HELPS_STUDENT = QUESTIONS["student", "loss.cross_entropy.smoothing"]


def figure_captions(
    results: dict[str, Any], curves: dict[str, list[list[float]]]
) -> dict[str, str]:
    """The sentence of each figure, by its name; none where there is nothing to say.

    Args:
        results: of the study.
        curves: validation accuracy by arm, seed and epoch.
    """
    sentences = {"accuracy": _accuracy(results), "learning_curves": _still_learning(curves)}
    pair = smoothing_pair(results)
    if pair:
        sentences |= {
            "reliability": _calibration(results, *pair),
            "features_plane": _tightness(results, *pair),
            "features_plane_2": _equidistance(results, *pair),
            "features_pca": _separation(results, *pair),
            "features_tsne": _collapse(results, *pair),
            "information": _information(results, *pair),
        }
    else:
        sentences |= {
            "reliability": _range(results, "ECE", _of("test", "ece"), 100, 2, "%"),
            "features_plane": _range(
                results, "within/between of training features", _of("train", TIGHT), 1, 3
            ),
            "features_plane_2": _range(
                results,
                "the unequal distance to wrong templates",
                _of("train", "wrong_template_spread"),
                1,
                3,
            ),
            "features_pca": _range(
                results, "the class separation R²", _of("train", "class_separation"), 1, 3
            ),
            "features_tsne": _range(results, "NC1", _of("train", "nc1"), 1, 3),
            "information": _range(
                results, "the information about single images", last_information, 1, 2, " nats"
            ),
        }
    sentences |= {"robustness": _robustness(results, pair), "fidelity": _fidelity(results)}
    return {name: sentence for name, sentence in sentences.items() if sentence}


def smoothing_pair(results: dict[str, Any]) -> tuple[str, str] | None:
    """A hard arm and its smoothed counterpart, of several the most smoothed: teachers where there are such, else
    students alone."""
    for question in (HELPS_TEACHER, HELPS_STUDENT, TEACHER_SMOOTHING):
        pairs = [(c["a"], c["b"]) for c in results["comparisons"] if c["question"] == question]
        if pairs:
            return [pair for pair in pairs if pair[0] == pairs[0][0]][-1]
    return None


def paired(results: dict[str, Any], a: str, b: str, value: Value) -> Paired | None:
    """The paired difference b - a of any number of a run; None where a run has none."""
    runs = {(run["arm"], run["seed"]): run for run in results["runs"]}
    seeds = [s for s in results["seeds"] if (a, s) in runs and (b, s) in runs]
    values = [[value(runs[arm, seed]) for seed in seeds] for arm in (a, b)]
    return compare(*values) if seeds and None not in values[0] + values[1] else None


def change(test: Paired, seeds: int, factor: float = 1.0, decimals: int = 2, unit: str = "") -> str:
    """From where to where, by how much, and how sure that is."""
    first, last, by = (factor * v for v in (test.mean_a, test.mean_b, test.difference))
    text = f"from {first:.{decimals}f}{unit} to {last:.{decimals}f}{unit}"
    if test.ci95 is None:
        return f"{text} ({seeds} seed{'s' if seeds > 1 else ''} without spread: no uncertainty can be given)"
    low, high = (factor * bound for bound in test.ci95)
    known = "" if low > 0 or high < 0 else "; these seeds cannot tell it from no change"
    return (
        f"{text} ({by:+.{decimals}f}, 95% interval {low:+.{decimals}f} to {high:+.{decimals}f}, "
        f"{seeds} seeds{known})"
    )


def _of(split: str, metric: str) -> Value:
    return lambda run: run["metrics"][split][metric]


def _range(
    results: dict[str, Any], what: str, value: Value, factor: float, decimals: int, unit: str = ""
) -> str:
    """Between which arms a number lies, where no two arms differ in smoothing alone."""
    means: dict[str, list[float]] = {}
    for run in results["runs"]:
        if value(run) is not None:
            means.setdefault(run["arm"], []).append(factor * value(run))
    if len(means) < 2:
        return ""
    ordered = sorted(means, key=lambda arm: np.mean(means[arm]))

    def end(arm: str) -> str:
        values = means[arm]
        spread = f"{len(values)} seeds, standard deviation {mean_interval(values)[1]:.{decimals}f}"
        return f"{np.mean(values):.{decimals}f}{unit} ({arm}, {spread if len(values) > 1 else 'one run'})"

    ends = [end(arm) for arm in (ordered[0], ordered[-1])]
    return f"By arm, {what} lies between {ends[0]} and {ends[1]}."


def _counted(results: dict[str, Any], a: str, b: str, value: Value) -> str:
    """In how many seeds b is below a."""
    runs = {(run["arm"], run["seed"]): run for run in results["runs"]}
    lower = [value(runs[b, s]) < value(runs[a, s]) for s in results["seeds"]]
    return f"{sum(lower)} of {len(lower)}"


def _accuracy(results: dict[str, Any]) -> str:
    ranking = results["ranking"]
    if len(ranking) < 2:
        return ""
    text = f"The student with the highest mean is {ranking[0]['arm']} ({100 * ranking[0]['mean']:.2f}%)"
    judged = [row["difference_ci"] for row in ranking[1:] if row["difference_ci"]]
    if not judged:
        return f"{text}; how sure that is cannot be said."
    behind = sum(1 for interval in judged if interval[1] < 0)
    return f"{text}; behind it by more than chance, all pairs judged together: {behind} of {len(judged)}."


def _still_learning(curves: dict[str, list[list[float]]]) -> str:
    """Whether training was over: the gain of the last tenth of the epochs, by arm."""
    gaining, judged = 0, 0
    for seeds in curves.values():
        table = np.asarray(seeds)
        if len(table) < 2 or table.shape[1] < 10:
            continue
        judged += 1
        gain = table[:, -1] - table[:, -1 - table.shape[1] // 10]
        interval = mean_interval(list(gain))[2]
        gaining += bool(interval and interval[0] > 0)
    return (
        (
            f"In the last tenth of the epochs the validation accuracy of {gaining} of {judged} arms still rose by more "
            "than chance (95% intervals, each arm by itself)."
        )
        if judged
        else ""
    )


def _calibration(results: dict[str, Any], a: str, b: str) -> str:
    count = len(results["seeds"])
    plain, scaled = (paired(results, a, b, _of("test", metric)) for metric in ("ece", "ece_scaled"))
    if not plain or not scaled:
        return ""
    return (
        f"From {a} to {b} the ECE goes {change(plain, count, 100, 2, '%')}; after temperature scaling, "
        f"{change(scaled, count, 100, 2, '%')}."
    )


def _tightness(results: dict[str, Any], a: str, b: str) -> str:
    value = _of("train", TIGHT)
    logs = paired(results, a, b, lambda run: math.log(value(run)) if value(run) else None)
    if logs is None:
        return ""
    text = (
        f"From {a} to {b}, within/between of the training features of all classes is lower in "
        f"{_counted(results, a, b, value)} seeds: {math.exp(logs.difference):.2f} times what it was"
    )
    if logs.ci95:
        low, high = (math.exp(bound) for bound in logs.ci95)
        known = "" if low > 1 or high < 1 else "; these seeds cannot tell it from no change"
        text += f" (95% interval {low:.2f} to {high:.2f} times{known})"
    validation = paired(results, a, b, _of("validation", TIGHT))
    return (
        f"{text}; on validation images it goes {change(validation, len(results['seeds']), 1, 3)}."
        if validation
        else text + "."
    )


def _equidistance(results: dict[str, Any], a: str, b: str) -> str:
    test = paired(results, a, b, _of("train", "wrong_template_spread"))
    return (
        f"From {a} to {b}, how unequally far training examples are from their wrong templates (standard deviation "
        f"over mean) goes {change(test, len(results['seeds']), 1, 3)}."
        if test
        else ""
    )


def _separation(results: dict[str, Any], a: str, b: str) -> str:
    test = paired(results, a, b, _of("train", "class_separation"))
    return (
        f"From {a} to {b}, the class separation R² of training features goes "
        f"{change(test, len(results['seeds']), 1, 3)}."
        if test
        else ""
    )


def _collapse(results: dict[str, Any], a: str, b: str) -> str:
    test = paired(results, a, b, _of("train", "nc1"))
    return (
        f"From {a} to {b}, NC1 of training features (0 is full collapse) goes "
        f"{change(test, len(results['seeds']), 1, 3)}."
        if test
        else ""
    )


def _information(results: dict[str, Any], a: str, b: str) -> str:
    test = paired(results, a, b, last_information)
    return (
        f"From {a} to {b}, the information about single images at the end of training goes "
        f"{change(test, len(results['seeds']), 1, 2, ' nats')}; log 2 is {math.log(2):.2f}."
        if test
        else ""
    )


def _robustness(results: dict[str, Any], pair: tuple[str, str] | None) -> str:
    runs = [run for run in results["runs"] if run["metrics"]["test"]["num_attacked"]]
    if not runs:
        return ""
    text = ""
    if pair:
        test = paired(results, *pair, _of("test", "worst_linf"))
        transferred = {
            run["metrics"]["test"]["transfer"] is None for run in runs if run["arm"] in pair
        }
        if test and len(transferred) == 1:  # the same attacks on both
            text = (
                f"From {pair[0]} to {pair[1]}, what withstands all L∞ attacks goes "
                f"{change(test, len(results['seeds']), 100, 1, '%')}. "
            )
    arms: dict[str, list[float]] = {}
    for run in runs:
        test = run["metrics"]["test"]
        arms.setdefault(run["arm"], []).append(100 * (test["pgd_linf"] - test["worst_linf"]))
    most = max(arms, key=lambda arm: np.mean(arms[arm]))
    mean, _, interval = mean_interval(arms[most])
    zero = max(run["metrics"]["test"]["zero_gradient"] for run in runs)
    sure = (
        f"95% interval {interval[0]:.1f} to {interval[1]:.1f}"
        if interval
        else "no uncertainty can be given"
    )
    return text + (
        f"PGD by cross-entropy overlooks most at {most}: {mean:.1f} points that the other L∞ attacks find "
        f"({sure}, {len(arms[most])} seeds). At most {100 * zero:.1f}% of a network's images give no "
        "gradient at all."
    )


def _fidelity(results: dict[str, Any]) -> str:
    """Over all students: agreement with the own teacher against that with a teacher they never saw."""
    runs = [r for r in results["runs"] if r["metrics"]["test"]["agreement_control"] is not None]
    if not runs:
        return ""
    seeds = sorted({run["seed"] for run in runs})

    def means(metric: str) -> list[float]:
        return [
            float(np.mean([r["metrics"]["test"][metric] for r in runs if r["seed"] == s]))
            for s in seeds
        ]

    test = compare(means("agreement_control"), means("agreement"))
    return (
        "From a teacher of another seed to their own, the students' agreement goes "
        f"{change(test, len(seeds), 100, 2, '%')}."
    )


def temperature_map_caption(group: dict[tuple[float, float], list[Run]]) -> str:
    """Whether temperature does the same to the students of the least and of the most smoothed teacher.

    Args:
        group: runs by (smoothing of the teacher, temperature).
    """
    smoothings, temperatures = (sorted({key[i] for key in group}) for i in (0, 1))
    corners = [
        (s, t) for s in (smoothings[0], smoothings[-1]) for t in (temperatures[0], temperatures[-1])
    ]
    if not all(corner in group for corner in corners):
        return ""
    by_seed = [
        {run["seed"]: run["metrics"]["test"]["top1"] for run in group[corner]} for corner in corners
    ]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    effects = [[low[s] for s in seeds] for low in by_seed]
    hard, smoothed = ([b - a for a, b in zip(*effects[i : i + 2], strict=True)] for i in (0, 2))
    test = compare(hard, smoothed)
    return (
        f"Raising the temperature from {temperatures[0]:g} to {temperatures[-1]:g} changes the student by "
        f"{100 * test.mean_a:+.2f} points where the teacher's smoothing is {smoothings[0]:g} and by "
        f"{100 * test.mean_b:+.2f} where it is {smoothings[-1]:g}: the effect goes "
        f"{change(test, len(seeds), 100, 2)}."
    )


def equivalent_smoothing_caption(curves: dict[str, dict[int, list[float]]]) -> str:
    """Whether students of a tempered teacher and of smoothed ones beat the student alone: each curve's mean by seed.

    Args:
        curves: accuracies by the curve's name and by seed.
    """
    base = next((seeds for name, seeds in curves.items() if name.startswith("student alone")), None)
    said = []
    for name, seeds in curves.items():
        common = sorted(set(base or ()) & set(seeds))
        if common and name.startswith("student of"):
            test = compare(
                [float(np.mean(base[s])) for s in common],
                [float(np.mean(seeds[s])) for s in common],
            )
            said.append(f"to the {name}, {change(test, len(common), 100, 2, '%')}")
    return (
        f"From the student alone, averaged over its smoothing: {'; '.join(said)}." if said else ""
    )
