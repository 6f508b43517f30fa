"""The README's numbers on digits, the temperature map, and CIFAR-10."""

from typing import Any

import numpy as np
from paper_numbers import (
    Pair,
    Runs,
    accuracy,
    arm,
    compare_runs,
    cost,
    difference,
    is_gain,
    is_loss,
    load,
    mean_of,
    metric,
    plain,
    spread,
    study_comparison,
    table,
)

from distill.evaluation.statistics import Paired, compare
from distill.report.captions import temperature_map_caption

AGREEMENT = metric("test", "agreement", 100)
ECE = metric("test", "ece", 100)
EFFECTIVE_SMOOTHING = metric("train", "effective_smoothing")
TEACHERS = ("hard", "smoothed")
DIGITS_TEMPERATURES = (1, 4)
CIFAR_TEMPERATURES = (1, 2, 4)


# ------------------------------------------------------------------------------------------- digits


def digits() -> dict[str, Any]:
    """Return the table of the quick start, and what smoothing the teacher does at T = 4."""
    results = load("digits")
    arms = {
        "teacher, hard labels": arm(results, "hard"),
        "teacher, smoothing 0.1": arm(results, "smoothed"),
        "student alone, hard labels": arm(results, "alone", smoothing=0.0),
        "student alone, smoothing 0.1": arm(results, "alone", smoothing=0.1),
    }
    for teacher in TEACHERS:
        for temperature in DIGITS_TEMPERATURES:
            arms[f"student of the {teacher} teacher, T = {temperature}"] = arm(
                results, "distilled", teacher=teacher, temperature=temperature
            )
    hard = arms["student of the hard teacher, T = 4"]
    smoothed = arms["student of the smoothed teacher, T = 4"]
    headings = ["arm", "test accuracy, %", "ECE, %", "agreement, %", "γ"]
    return {
        "table": table(headings, [_digits_row(name, runs) for name, runs in arms.items()]),
        "cost": cost(results),
        "images": hard[0].test.count,
        "test": compare_runs(hard, smoothed, accuracy),
        "p_holm": study_comparison(results, hard, smoothed).p_holm,
        "comparisons": len(results.comparisons),
    }


def _digits_row(name: str, runs: Runs) -> list[str]:
    is_distilled = runs[0].teacher is not None
    is_teacher = runs[0].role == "teacher"
    agreement = f"{mean_of(AGREEMENT, runs):.1f}" if is_distilled else ""
    gamma = ""
    if is_distilled or is_teacher:
        gamma = f"{mean_of(EFFECTIVE_SMOOTHING, runs):.3f}"
    return [name, spread(accuracy(runs), 2), f"{mean_of(ECE, runs):.2f}", agreement, gamma]


# ---------------------------------------------------------------------------------------------- map


def the_map() -> dict[str, Any]:
    """Return accuracy, agreement and γ by teacher smoothing and temperature, and figure 5."""
    results = load("map")
    axes = [run.axes for run in results.runs if run.arm.startswith("distilled/")]
    smoothings = sorted({values["teacher.smoothing"] for values in axes})
    temperatures = sorted({values["temperature"] for values in axes})
    alone = {s: arm(results, "alone", smoothing=s) for s in smoothings}
    teachers = {s: arm(results, "teacher", smoothing=s) for s in smoothings}
    cells = {}
    rows = []
    for s in smoothings:
        for t in temperatures:
            cells[s, t] = arm(results, "distilled", teacher_smoothing=s, temperature=t)
        row = [f"{s:g}", spread(accuracy(teachers[s]), 2), spread(accuracy(alone[s]), 2)]
        rows.append(row + [_map_cell(cells[s, t]) for t in temperatures])
    headings = ["smoothing", "teacher, %", "alone, %", *(f"T = {t:g}" for t in temperatures)]
    by_smoothing = [_at_equal_gamma(cells[s, 1], alone) for s in smoothings]
    by_temperature = [_at_equal_gamma(cells[0.0, t], alone) for t in temperatures]
    best = max(smoothings, key=lambda s: mean_of(accuracy, teachers[s]))
    return {
        "cost": cost(results),
        "table": table(headings, rows),
        "map": plain(temperature_map_caption(cells)),
        "seeds": len(results.seeds),
        "smoothings": smoothings,
        "temperatures": temperatures,
        "best": f"{best:g}",
        "by_smoothing": _tally(by_smoothing),
        "by_temperature": _tally(by_temperature),
    }


def _map_cell(runs: Runs) -> str:
    gamma = mean_of(EFFECTIVE_SMOOTHING, runs)
    return f"{mean_of(accuracy, runs):.2f} · {mean_of(AGREEMENT, runs):.1f} · {gamma:.2f}"


def _at_equal_gamma(runs: Runs, alone: dict[float, Runs]) -> Paired | None:
    """Compare distilled students with the student alone at equal γ, seed by seed.

    The accuracy of the student alone is interpolated between its label smoothings. The result is
    None if γ is larger than all of them.
    """
    smoothings = list(alone)
    smoothing_by_seed = EFFECTIVE_SMOOTHING(runs)
    if max(smoothing_by_seed) > smoothings[-1]:
        return None
    by_seed = np.transpose([accuracy(alone[s]) for s in smoothings])
    interpolated = []
    for effective, curve in zip(smoothing_by_seed, by_seed, strict=True):
        interpolated.append(np.interp(effective, smoothings, curve))
    return compare(interpolated, accuracy(runs))


def _tally(tests: list[Paired | None]) -> str:
    """Return how many differences are gains and how many losses, each by its own interval."""
    known = [test for test in tests if test]
    better = sum(is_gain(test) for test in known)
    worse = sum(is_loss(test) for test in known)
    return f"better at {better} of {len(known)} points, worse at {worse}"


# -------------------------------------------------------------------------------------------- CIFAR


def cifar10() -> dict[str, Any]:
    """Return the accuracy of ResNet-8 on CIFAR-10 by teacher and temperature."""
    results = load("cifar10_small")
    teachers = Pair(arm(results, "hard"), arm(results, "smoothed"))
    alone = Pair(arm(results, "alone", smoothing=0.0), arm(results, "alone", smoothing=0.1))

    def gain(a: Runs, b: Runs) -> str:
        images = study_comparison(results, a, b).ci95_images
        return difference(compare_runs(a, b, accuracy), 2, images)

    def row(name: str, pair: Pair) -> list[str]:
        cells = [spread(accuracy(runs), 2) for runs in pair]
        return [name, *cells, gain(pair.hard, pair.smoothed)]

    rows = [[*row("the teacher itself", teachers), "", ""]]
    worse = []
    for t in CIFAR_TEMPERATURES:
        hard = arm(results, "distilled", teacher="hard", temperature=t)
        smoothed = arm(results, "distilled", teacher="smoothed", temperature=t)
        gains = [gain(alone.hard, hard), gain(alone.hard, smoothed)]
        rows.append(row(f"KD, T = {t}", Pair(hard, smoothed)) + gains)
        if is_loss(compare_runs(hard, smoothed, accuracy)):
            worse.append(t)
    rows.append([*row("alone", alone), "", ""])
    changes = ["smoothed − hard", "hard − alone", "smoothed − alone"]
    return {
        "cost": cost(results),
        "table": table(["test accuracy, %", *TEACHERS, *changes], rows),
        "epochs": alone.hard[0].epochs,
        "worse": worse,
        "seeds": len(results.seeds),
    }
