"""The figures of a report, from a study's results and what is stored beside its runs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.calibration import Reliability, reliability
from distill.evaluation.feature_plot import FeaturePlot, numbered
from distill.report.captions import (
    equivalent_smoothing_caption,
    figure_captions,
    temperature_map_caption,
)
from distill.report.tables import arms_of
from distill.storage.run_store import RunStore

PANELS = 24  # arms of a figure that has a panel or a curve for each
ATTACKS = {
    "unattacked": "none",
    "fgsm": "FGSM",
    "pgd_linf": "PGD L∞",
    "margin_linf": "margin L∞",
    "transfer": "transfer L∞",
    "pgd_l2": "PGD L2",
}
Run = dict[str, Any]


def draw(
    results: dict[str, Any], store: RunStore, folder: Path, feature_plot: FeaturePlot | None
) -> dict[str, str]:
    """Write every figure for which there is something stored; what each says, by its name.

    Figures of an older report that are not drawn again are removed.
    """
    from distill.report import figures as figures
    from distill.report.style import save

    arms = arms_of(results)
    some = dict(list(arms.items())[:PANELS])
    groups, curves = students_by_teacher(results, store), accuracy_by_epoch(some, store)
    made = {
        "accuracy": figures.accuracy({name: _values(runs, "top1") for name, runs in arms.items()}),
        "reliability": figures.reliability(
            {name: _diagrams(runs, store) for name, runs in some.items()}
        ),
    }
    if curves:
        made["learning_curves"] = figures.learning_curves(curves)
    told = figure_captions(results, curves)
    for number, (title, group) in enumerate(groups.items()):
        name, cells = (
            numbered("temperature_map", number),
            {key: _cell(runs) for key, runs in group.items()},
        )
        made[name], told[name] = (
            figures.temperature_map(cells, title),
            temperature_map_caption(group),
        )
    five = figure_five(results)
    if five:
        made["equivalent_smoothing"] = figures.equivalent_smoothing(
            {name: [_cell(runs) for runs in points] for name, points in five.items()}
        )
        told["equivalent_smoothing"] = equivalent_smoothing_caption(
            {name: _by_seed(p) for name, p in five.items()}
        )
    known = {name: information_by_epoch(runs) for name, runs in some.items()}
    known = {name: seeds for name, seeds in known.items() if seeds}
    if known:
        examples = max(state["examples"] for run in results["runs"] for state in run["information"])
        made["information"] = figures.information(known, examples)
    if any(run["metrics"]["test"]["num_attacked"] for run in results["runs"]):
        made["robustness"] = figures.robustness(
            {
                name: {title: _values(runs, key) for key, title in ATTACKS.items()}
                for name, runs in some.items()
            }
        )
    for name, figure in made.items():
        save(figure, folder, name)
    drawn = {*made, *(draw_features(feature_plot, folder) if feature_plot else ())}
    for old in folder.glob("*.*"):
        if old.stem not in drawn:
            old.unlink()
    return told


def draw_features(feature_plot: FeaturePlot, folder: Path) -> list[str]:
    """The views of a feature_plot as PNG and SVG; their names."""
    from distill.report.feature_figures import features
    from distill.report.style import save

    for name, view in zip(feature_plot.view_names(), feature_plot.views, strict=True):
        save(features(feature_plot, view), folder, name)
    return feature_plot.view_names()


def accuracy_by_epoch(arms: dict[str, list[Run]], store: RunStore) -> dict[str, list[list[float]]]:
    """Validation accuracy by arm, seed and epoch, of what was trained."""
    curves = {}
    for name, runs in arms.items():
        seeds = [[line["validation"]["top1"] for line in store.history(run["id"])] for run in runs]
        if seeds[0]:
            curves[name] = seeds
    return curves


def information_by_epoch(runs: list[Run]) -> list[list[tuple[int, float]]]:
    """By seed, (epoch, nats) at the epochs of which all runs of an arm have a state; none if that is but one."""
    seeds = [
        {s["epoch"]: s["nats"] for s in run["information"] if s["nats"] is not None} for run in runs
    ]
    common = sorted(set.intersection(*map(set, seeds)))
    return [[(epoch, seed[epoch]) for epoch in common] for seed in seeds] if len(common) > 1 else []


def students_by_teacher(
    results: dict[str, Any], store: RunStore
) -> dict[str, dict[tuple[float, float], list[Run]]]:
    """Students that differ in their teacher's smoothing and their temperature alone, where there are two of each."""
    groups: dict[tuple[str, str], dict[tuple[float, float], list[Run]]] = {}
    for run, teacher in _taught(results):
        axes = {
            key: value
            for key, value in run["axes"].items()
            if key not in ("teacher", "temperature", "teacher.smoothing")
        }
        rest = ", ".join(f"{key}={value}" for key, value in axes.items())
        title = f"{run['arm'].split('/')[0]} ({run['model']} of {teacher['model']}){f', {rest}' if rest else ''}"
        group = groups.setdefault(
            (title, _but_smoothing(store.record(teacher["id"])["settings"])), {}
        )
        group.setdefault((teacher["smoothing"], run["temperature"]), []).append(run)
    maps = [
        (title, group)
        for (title, _), group in groups.items()
        if all(len({key[i] for key in group}) > 1 for i in (0, 1))
    ]
    titles = [title for title, _ in maps]
    return {
        f"{title} ({titles[:i].count(title) + 1})" if titles.count(title) > 1 else title: group
        for i, (title, group) in enumerate(maps)
    }


def _but_smoothing(settings: dict[str, Any]) -> str:
    """All that makes a teacher but its seed and the smoothing of its labels."""
    hard = {
        key: value for key, value in settings["loss"]["cross_entropy"].items() if key != "smoothing"
    }
    return json.dumps(
        settings | {"seed": None, "loss": settings["loss"] | {"cross_entropy": hard}},
        sort_keys=True,
    )


def figure_five(results: dict[str, Any]) -> dict[str, list[list[Run]]]:
    """The four curves of the paper's Figure 5: the runs of each point, where two curves at least have two points.

    Teachers and students alone by their smoothing; students of a hard teacher by temperature, and of smoothed
    teachers at T = 1; both by the gamma of what their teacher says. Of several students, those of the first model.
    """
    taught = {run["id"]: teacher for run, teacher in _taught(results)}
    student = next((run["model"] for run in results["runs"] if run["id"] in taught), None)
    curves: dict[str, dict[str, list[Run]]] = {
        "teacher, by its smoothing": {},
        "student alone, by its smoothing": {},
        "student of the hard teacher, by temperature": {},
        "student of smoothed teachers, T = 1": {},
    }
    names = list(curves)
    for run in results["runs"]:
        teacher = taught.get(run["id"])
        if run["role"] == "teacher" and run["smoothing"] is not None:
            curves[names[0]].setdefault(run["arm"], []).append(run)
        elif run["teacher"] is None and run["smoothing"] is not None and run["model"] == student:
            curves[names[1]].setdefault(run["arm"], []).append(run)
        elif teacher and run["model"] == student:
            if teacher["smoothing"] == 0:
                curves[names[2]].setdefault(run["arm"], []).append(run)
            if run["temperature"] == 1:
                curves[names[3]].setdefault(run["arm"], []).append(run)
    kept = {name: list(points.values()) for name, points in curves.items() if points}
    return kept if sum(len(points) > 1 for points in kept.values()) >= 2 else {}


def _taught(results: dict[str, Any]) -> Iterable[tuple[Run, Run]]:
    """Students of one teacher with a known smoothing, trained with kd, and that teacher."""
    by_id = {run["id"]: run for run in results["runs"]}
    for run in results["runs"]:
        teacher = by_id.get(run["teacher"]) if isinstance(run["teacher"], str) else None
        if teacher and teacher["smoothing"] is not None and run["temperature"] is not None:
            yield run, teacher


def _cell(runs: list[Run]) -> Any:
    """A point of the map: the gamma of a network that learns from labels is their smoothing."""
    from distill.report.figures import Cell

    gammas = [
        run["metrics"]["train"]["effective_smoothing"]
        if run["temperature"] is not None
        else run["smoothing"]
        for run in runs
    ]
    return Cell(_values(runs, "top1"), float(np.mean(gammas)))


def _by_seed(points: list[list[Run]]) -> dict[int, list[float]]:
    seeds: dict[int, list[float]] = {}
    for run in (run for runs in points for run in runs):
        seeds.setdefault(run["seed"], []).append(run["metrics"]["test"]["top1"])
    return seeds


def _values(runs: list[Run], metric: str) -> list[float]:
    values = [run["metrics"]["test"][metric] for run in runs]
    return [value for value in values if value is not None]


def _diagrams(runs: list[Run], store: RunStore) -> tuple[Reliability, Reliability]:
    """Of all seeds of an arm together, as trained and with each run's own fitted temperature."""
    pairs = []
    for scaled in (False, True):
        logits, labels = [], []
        for run in runs:
            stored = store.predictions(run["id"])
            temperature = run["metrics"]["test"]["fitted_temperature"] if scaled else 1.0
            logits.append(stored["test.logits"].double().numpy() / temperature)
            labels.append(stored["test.labels"].numpy())
        pairs.append(reliability(np.concatenate(logits), np.concatenate(labels)))
    return pairs[0], pairs[1]
