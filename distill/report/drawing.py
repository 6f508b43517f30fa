"""Draw the figures of a report, from a study's results and what is stored beside its runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.evaluation.calibration import Reliability, reliability
from distill.evaluation.feature_plot import FeaturePlot, numbered
from distill.report.arm_names import short_names
from distill.report.captions import (
    equivalent_smoothing_caption,
    figure_captions,
    temperature_map_caption,
)
from distill.storage.run_store import RunStore
from distill.storage.study_results import RunResult, StudyResults

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

    from distill.report.figures import Cell

MOST_PANELS = 24  # arms in a figure that has a panel or a curve for each
ATTACKS = {
    "unattacked": "none",
    "fgsm": "FGSM",
    "pgd_linf": "PGD L∞",
    "margin_linf": "margin L∞",
    "transfer": "transfer L∞",
    "pgd_l2": "PGD L2",
}

Arms = dict[str, list[RunResult]]
TemperatureMap = dict[tuple[float, float], list[RunResult]]  # (teacher's smoothing, temperature)


def draw(
    results: StudyResults, store: RunStore, folder: Path, feature_plot: FeaturePlot | None
) -> dict[str, str]:
    """Write every figure for which there are stored numbers, as PNG and SVG.

    Figures of an older report that are not drawn again are removed.

    Args:
        results: of the study.
        store: where its runs are.
        folder: where the figures are written.
        feature_plot: penultimate features of some networks, if there are any.

    Returns:
        the sentence about each figure, by the figure's name.
    """
    from distill.report.style import save

    names = short_names(results)
    arms = {names[arm]: runs for arm, runs in results.arms().items()}
    first_arms = dict(list(arms.items())[:MOST_PANELS])
    curves = accuracy_by_epoch(first_arms, store)
    maps = temperature_maps(results, store)
    five = figure_five(results)

    drawn = _draw_arms(arms, first_arms, curves, store)
    drawn |= _draw_information(results, first_arms)
    drawn |= _draw_robustness(results, first_arms)
    drawn |= _draw_temperature_maps(maps)
    drawn |= _draw_figure_five(five)
    for name, figure in drawn.items():
        save(figure, folder, name)
    names = set(drawn)
    if feature_plot:
        names |= set(draw_features(feature_plot, folder))
    _remove_old_figures(folder, names)

    captions = figure_captions(results, curves)
    for number, group in enumerate(maps.values()):
        captions[numbered("temperature_map", number)] = temperature_map_caption(group)
    if five:
        accuracies = {name: _accuracy_by_seed(points) for name, points in five.items()}
        captions["equivalent_smoothing"] = equivalent_smoothing_caption(accuracies)
    return captions


def draw_features(feature_plot: FeaturePlot, folder: Path) -> list[str]:
    """Write the views of a feature plot as PNG and SVG, and return their names."""
    from distill.report.feature_figures import features
    from distill.report.style import save

    names = feature_plot.view_names()
    for name, view in zip(names, feature_plot.views, strict=True):
        save(features(feature_plot, view), folder, name)
    return names


# ------------------------------------------------------------------------------------ the numbers


def accuracy_by_epoch(arms: Arms, store: RunStore) -> dict[str, list[list[float]]]:
    """Return validation accuracy by arm, seed and epoch, of the networks that were trained."""
    curves = {}
    for name, runs in arms.items():
        seeds = []
        for run in runs:
            epochs = store.history(run.id)
            seeds.append([epoch["validation"]["top1"] for epoch in epochs])
        if seeds[0]:
            curves[name] = seeds
    return curves


def information_by_epoch(runs: list[RunResult]) -> list[list[tuple[int, float]]]:
    """Return (epoch, nats) by seed, at the epochs that all runs of an arm have in common.

    The list is empty if there are fewer than two such epochs.
    """
    seeds = []
    for run in runs:
        known = [one for one in run.information if one.nats is not None]
        seeds.append({one.epoch: one.nats for one in known})
    common = sorted(set.intersection(*(set(nats) for nats in seeds)))
    if len(common) < 2:
        return []
    return [[(epoch, nats[epoch]) for epoch in common] for nats in seeds]


def temperature_maps(results: StudyResults, store: RunStore) -> dict[str, TemperatureMap]:
    """Group distilled students that differ only in teacher smoothing and temperature, by title.

    Groups with a single smoothing or a single temperature are left out.
    """
    groups: dict[tuple[str, str], TemperatureMap] = {}
    for run, teacher in _distilled(results):
        settings = store.record(teacher.id)["settings"]
        group = groups.setdefault((_map_title(run, teacher), _all_but_smoothing(settings)), {})
        group.setdefault((teacher.smoothing, run.temperature), []).append(run)
    maps = []
    for (title, _), group in groups.items():
        smoothings = {smoothing for smoothing, _ in group}
        temperatures = {temperature for _, temperature in group}
        if len(smoothings) > 1 and len(temperatures) > 1:
            maps.append((title, group))
    titles = [title for title, _ in maps]
    numbered_maps = {}
    for i, (title, group) in enumerate(maps):
        if titles.count(title) > 1:
            title = f"{title} ({titles[:i].count(title) + 1})"
        numbered_maps[title] = group
    return numbered_maps


def figure_five(results: StudyResults) -> dict[str, list[list[RunResult]]]:
    """Return the four curves of the paper's Figure 5: the runs of each point.

    Teachers and students alone are drawn over their label smoothing, students of a hard teacher (by
    temperature) and of smoothed teachers (at T = 1) over their teacher's effective smoothing. Of
    several students it shows those of the first model, and each curve those with the loss of its
    first arm. Without two curves of two points there is no figure.
    """
    teacher_of = {run.id: teacher for run, teacher in _distilled(results)}
    student_models = [run.model for run in results.runs if run.id in teacher_of]
    student_model = student_models[0] if student_models else None
    teachers = [run for run in results.runs if run.role == "teacher"]
    students = [run for run in results.runs if run.model == student_model]
    hard = []
    at_temperature_1 = []
    for run in students:
        teacher = teacher_of.get(run.id)
        if run.role == "teacher" or teacher is None:
            continue
        if teacher.smoothing == 0:
            hard.append(run)
        if run.temperature == 1:
            at_temperature_1.append(run)
    alone = [run for run in students if run.role == "student" and run.teacher is None]
    curves = {
        "teacher, by its smoothing": _with_smoothing(teachers),
        "student alone, by its smoothing": _with_smoothing(alone),
        "student of the hard teacher, by temperature": hard,
        "student of smoothed teachers, T = 1": at_temperature_1,
    }
    points = {}
    for name, runs in curves.items():
        by_arm: Arms = {}
        for run in runs:
            if _loss_family(run) == _loss_family(runs[0]):
                by_arm.setdefault(run.arm, []).append(run)
        if by_arm:
            points[name] = list(by_arm.values())
    num_curves = sum(len(arms) > 1 for arms in points.values())
    return points if num_curves >= 2 else {}


def _distilled(results: StudyResults) -> Iterator[tuple[RunResult, RunResult]]:
    """Yield each student of one teacher with that teacher, where both have the numbers to plot.

    The student's loss must have a temperature, and the teacher's label smoothing must be known.
    """
    by_id = {run.id: run for run in results.runs}
    for run in results.runs:
        if not isinstance(run.teacher, str) or run.temperature is None:
            continue
        teacher = by_id.get(run.teacher)
        if teacher and teacher.smoothing is not None:
            yield run, teacher


def _map_title(run: RunResult, teacher: RunResult) -> str:
    """Return the title of the map that a student belongs to."""
    title = f"{run.arm.split('/')[0]} ({run.model} of {teacher.model})"
    for axis, value in run.axes.items():
        is_shown_by_map = axis == "teacher" or axis.split(".")[-1] == "temperature"
        if axis.startswith("teacher.") and axis.endswith("smoothing"):
            is_shown_by_map = True
        if not is_shown_by_map:
            title += f", {axis}={value}"
    return title


def _all_but_smoothing(settings: dict[str, Any]) -> str:
    """Return all settings of a teacher's run but its seed and its label smoothing, as text."""
    loss = _without_keys(settings["loss"], {"smoothing"})
    return json.dumps(settings | {"seed": None, "loss": loss}, sort_keys=True)


def _loss_family(run: RunResult) -> str:
    """Return what a run's loss has in common with the losses of the same curve."""
    loss = _without_keys(run.loss or {}, {"smoothing", "temperature"})
    return json.dumps(loss, sort_keys=True)


def _without_keys(loss: dict[str, dict[str, Any]], keys: set[str]) -> dict[str, dict[str, Any]]:
    reduced = {}
    for term, settings in loss.items():
        reduced[term] = {key: value for key, value in settings.items() if key not in keys}
    return reduced


def _with_smoothing(runs: list[RunResult]) -> list[RunResult]:
    return [run for run in runs if run.smoothing is not None]


def _cell(runs: list[RunResult]) -> "Cell":
    """Return the accuracies of an arm, and the smoothing of what it learns from.

    That is its teacher's effective smoothing, or the label smoothing of its own loss.
    """
    from distill.report.figures import Cell

    amounts = []
    for run in runs:
        has_temperature = run.temperature is not None
        amounts.append(run.train.effective_smoothing if has_temperature else run.smoothing)
    return Cell([run.test.top1 for run in runs], float(np.mean(amounts)))


def _accuracy_by_seed(points: list[list[RunResult]]) -> dict[int, list[float]]:
    seeds: dict[int, list[float]] = {}
    for runs in points:
        for run in runs:
            seeds.setdefault(run.seed, []).append(run.test.top1)
    return seeds


def _test_values(runs: list[RunResult], metric: str) -> list[float]:
    values = [getattr(run.test, metric) for run in runs]
    return [value for value in values if value is not None]


def _reliability_diagrams(
    runs: list[RunResult], store: RunStore
) -> tuple[Reliability, Reliability]:
    """Return the diagrams of an arm, all seeds together: as trained, and after scaling."""
    as_trained = []
    scaled = []
    labels = []
    for run in runs:
        predictions = store.predictions(run.id)
        logits = predictions["test.logits"].double().numpy()
        as_trained.append(logits)
        scaled.append(logits / run.test.fitted_temperature)
        labels.append(predictions["test.labels"].numpy())
    all_labels = np.concatenate(labels)
    return (
        reliability(np.concatenate(as_trained), all_labels),
        reliability(np.concatenate(scaled), all_labels),
    )


# ------------------------------------------------------------------------------------- the figures


def _draw_arms(
    arms: Arms, first_arms: Arms, curves: dict[str, list[list[float]]], store: RunStore
) -> "dict[str, Figure]":
    """Draw what every study has: accuracy, calibration and learning curves."""
    from distill.report import figures

    accuracies = {name: _test_values(runs, "top1") for name, runs in arms.items()}
    diagrams = {name: _reliability_diagrams(runs, store) for name, runs in first_arms.items()}
    drawn = {
        "accuracy": figures.accuracy(accuracies),
        "reliability": figures.reliability(diagrams),
    }
    if curves:
        drawn["learning_curves"] = figures.learning_curves(curves)
    return drawn


def _draw_information(results: StudyResults, arms: Arms) -> "dict[str, Figure]":
    from distill.report import figures

    by_arm = {}
    for name, runs in arms.items():
        seeds = information_by_epoch(runs)
        if seeds:
            by_arm[name] = seeds
    if not by_arm:
        return {}
    examples = max(one.examples for run in results.runs for one in run.information)
    return {"information": figures.information(by_arm, examples)}


def _draw_robustness(results: StudyResults, arms: Arms) -> "dict[str, Figure]":
    from distill.report import figures

    if not any(run.test.num_attacked for run in results.runs):
        return {}
    by_arm = {}
    for name, runs in arms.items():
        by_arm[name] = {title: _test_values(runs, key) for key, title in ATTACKS.items()}
    return {"robustness": figures.robustness(by_arm)}


def _draw_temperature_maps(maps: dict[str, TemperatureMap]) -> "dict[str, Figure]":
    from distill.report import figures

    drawn = {}
    for number, (title, group) in enumerate(maps.items()):
        cells = {setting: _cell(runs) for setting, runs in group.items()}
        drawn[numbered("temperature_map", number)] = figures.temperature_map(cells, title)
    return drawn


def _draw_figure_five(curves: dict[str, list[list[RunResult]]]) -> "dict[str, Figure]":
    from distill.report import figures

    if not curves:
        return {}
    cells = {name: [_cell(runs) for runs in points] for name, points in curves.items()}
    return {"equivalent_smoothing": figures.equivalent_smoothing(cells)}


def _remove_old_figures(folder: Path, names: set[str]) -> None:
    for path in folder.glob("*.*"):
        if path.stem not in names:
            path.unlink()
