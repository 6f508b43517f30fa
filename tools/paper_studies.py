"""The README's numbers on digits, the temperature map, and CIFAR-10."""

import json
from typing import Any

import numpy as np
from paper_numbers import (
    KEPT,
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
CIFAR_TEMPERATURES = (1, 2, 4)


# ------------------------------------------------------------------------------------------- digits


def digits() -> dict[str, Any]:
    """Return the three students of the README's example, and how stable their verdicts are."""
    results = load("digits")
    teachers = {name: arm(results, name) for name in TEACHERS}
    alone = arm(results, "alone")
    rows = [["alone", spread(accuracy(alone), 2), ""]]
    for name in TEACHERS:
        student = arm(results, "distilled", teacher=name)
        test = compare_runs(alone, student, accuracy)
        words = {"hard": "without smoothing", "smoothed": "with smoothing"}[name]
        cells = [spread(accuracy(student), 2), f"{difference(test, 2)}"]
        rows.append([f"distilled from the teacher {words} (`teacher={name}`)", *cells])
    headings = ["student", "test accuracy, %", "difference from alone, points (95% interval)"]
    checks = json.loads((KEPT / "showcase.json").read_text("utf-8"))
    first = min(check["first_seed"] for check in checks)
    return {
        "table": table(headings, rows),
        "cost": cost(results),
        "teachers": [f"{mean_of(accuracy, runs):.2f}%" for runs in teachers.values()],
        "threads": sorted({check["threads"] for check in checks}),
        "seed_sets": len({check["first_seed"] for check in checks} - {first}),
    }


# -------------------------------------------------------------------------------------------- peers


def peers() -> dict[str, Any]:
    """Return the versions of other libraries, and their distillation loss of one batch."""
    found = json.loads((KEPT / "peers.json").read_text("utf-8"))
    losses = {}
    for name, library in found["libraries"].items():
        values = dict(library["values"])
        texts = [f"{values.pop('default'):.2f}"] if "default" in values else []
        texts += [f"{value:.2f} with `{setting}`" for setting, value in values.items()]
        text = "; ".join(texts)
        losses[name] = text
    return {
        "temperature": f"{found['temperature']:g}",
        "reference": f"{found['reference']:.2f}",
        "versions": {name: library["version"] for name, library in found["libraries"].items()},
        "losses": losses,
    }


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
        "effects": [_effect_of_temperature(cells, s) for s in (smoothings[0], smoothings[-1])],
        "seeds": len(results.seeds),
        "smoothings": smoothings,
        "temperatures": temperatures,
        "best": f"{best:g}",
        "by_smoothing": _tally(by_smoothing),
        "by_temperature": _tally(by_temperature),
    }


def _effect_of_temperature(cells: dict[tuple[float, float], Runs], smoothing: float) -> Paired:
    """Compare the highest with the lowest temperature, in points."""
    temperatures = sorted(t for s, t in cells if s == smoothing)
    cold, hot = cells[smoothing, temperatures[0]], cells[smoothing, temperatures[-1]]
    return compare_runs(cold, hot, accuracy)


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
