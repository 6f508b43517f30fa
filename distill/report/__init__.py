"""The report of a study: tables and figures from what is stored, in HTML and in the terminal."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.table import Table

from distill.analysis.calibration import reliability
from distill.analysis.statistics import mean_interval
from distill.comparisons import DISTILLED, SMOOTHING, answer
from distill.runs import Store, read_results, write_aside

SHOWN = {  # metric: heading, factor, decimals
    "top1": ("accuracy, %", 100, 2), "nll": ("NLL, nats", 1, 4), "ece": ("ECE, %", 100, 2),
    "ece_scaled": ("ECE scaled, %", 100, 2), "fitted_temperature": ("fitted T", 1, 2),
    "agreement": ("agreement, %", 100, 2), "kl_to_teacher": ("KL to teacher", 1, 4), "gamma": ("gamma", 1, 3),
}


def arms_of(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each arm, in the recipe's order."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    return arms


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an arm: mean ± standard deviation over its seeds, on the test split (gamma on train)."""
    rows = []
    for name, runs in arms_of(results).items():
        row: dict[str, Any] = {"arm": name, "role": runs[0]["role"], "model": runs[0]["model"], "seeds": len(runs)}
        for metric, (_, factor, decimals) in SHOWN.items():
            split = "train" if metric == "gamma" else "test"
            values = [run["metrics"][split][metric] for run in runs]
            if None in values:
                row[metric] = "–"
                continue
            mean, sd, _ = mean_interval([factor * v for v in values])
            row[metric] = f"{mean:.{decimals}f}" + (f" ± {sd:.{decimals}f}" if len(values) > 1 else "")
        rows.append(row)
    return rows


def headline(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The accuracies' comparisons, those on smoothing and distillation first and the surest of a question first."""
    order = {question: number for number, question in enumerate((*SMOOTHING, DISTILLED))}
    chosen = [c | {"answer": answer(c)} for c in results["comparisons"] if c["metric"] == "top1"]
    def place(c: dict[str, Any]) -> tuple[int, str, float]:
        return order.get(c["question"], len(order)), c["question"], 1.0 if c["p_value"] is None else c["p_value"]

    return sorted(chosen, key=place)


def terminal_tables(results: dict[str, Any]) -> list[Table]:
    """What the report says, for a terminal."""
    accuracy = Table(title=f"{results['study']}: test split, mean ± standard deviation", title_justify="left")
    columns = ["top1", "nll", "ece", "ece_scaled", "agreement", "gamma"]
    accuracy.add_column("arm", overflow="fold")
    for metric in columns:
        accuracy.add_column(SHOWN[metric][0], justify="right")
    accuracy.add_column("seeds", justify="right")
    for row in summary(results):
        accuracy.add_row(row["arm"], *(row[m] for m in columns), str(row["seeds"]))
    questions = Table(title="comparisons of accuracy, b against a, paired by seed", title_justify="left")
    for heading in ("question", "a", "b", "answer"):
        questions.add_column(heading, overflow="fold")
    for comparison in headline(results):
        questions.add_row(*(comparison[key] for key in ("question", "a", "b", "answer")))
    return [accuracy, questions] if results["comparisons"] else [accuracy]


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    """Bounds of fractions, as percentages."""
    return " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds) if bounds else "–"


def draw(results: dict[str, Any], store: Store, folder: Path) -> None:
    """The figures of a study, from its results and its runs' stored predictions and history."""
    from distill import figures  # matplotlib takes a second to import, and tables do not need it

    arms = arms_of(results)
    figures.save(figures.accuracy({name: [r["metrics"]["test"]["top1"] for r in runs] for name, runs in arms.items()}),
                 folder, "accuracy")
    diagrams = {}
    for name, runs in arms.items():
        stored = [store.predictions(run["id"]) for run in runs]
        logits, labels = (np.concatenate([p[f"test.{part}"].numpy() for p in stored]) for part in ("logits", "labels"))
        diagrams[name] = reliability(logits, labels)
    figures.save(figures.reliability(diagrams), folder, "reliability")
    curves = {}
    for name, runs in arms.items():
        seeds = [[line["validation"]["top1"] for line in store.history(run["id"])] for run in runs]
        if seeds[0]:
            curves[name] = seeds
    if curves:
        figures.save(figures.learning_curves(curves), folder, "learning_curves")


def write_report(study: Path, store: Store) -> None:
    """`figures/` and `report.html` of a study's folder.

    The page holds everything it shows: no other file, no network.
    """
    results = read_results(study)
    draw(results, store, study / "figures")
    pictures = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in (study / "figures").glob("*.svg")}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = _interval
    template = environment.from_string(files("distill.report").joinpath("report.html.jinja").read_text("utf-8"))
    page = template.render(
        results=results, rows=summary(results), comparisons=headline(results), headings=SHOWN, pictures=pictures,
        recipe=(study / "recipe.yaml").read_text(encoding="utf-8"), few=len(results["seeds"]) < 3,
        seconds=sum({run["id"]: run["seconds"] for run in results["runs"]}.values()),
        hardware=sorted({run["hardware"] for run in results["runs"]}), tested=len(
            [c for c in results["comparisons"] if c["metric"] == "top1" and c["p_value"] is not None]))
    write_aside(study / "report.html", page)
