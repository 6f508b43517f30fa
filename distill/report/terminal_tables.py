"""Tables for a terminal: the arms of a study, its comparisons, and the metrics of a network."""

import math
from typing import Any

from rich.table import Table

from distill.errors import pluralize
from distill.report.arm_names import PairLabel
from distill.report.forest import Forest, make_forest
from distill.report.tables import NO_VALUE, TERMINAL, arm_table, spread_note
from distill.storage.study_results import StudyResults

MOST_CLASSES = 40  # classes in a table of `distill evaluate`


def terminal_tables(results: StudyResults) -> list[Table]:
    """Return the report's main numbers for a terminal: the arms, and the comparisons."""
    tables = [_arms(results)]
    forest = make_forest(results)
    if forest:
        tables.append(_comparisons(forest, of_one_seed=len(results.seeds) == 1))
    return tables


def evaluation_tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    """Return what `distill evaluate` found, for a terminal.

    Args:
        found: by the network's name, what `evaluate_network` returns.
    """
    tables = []
    measured = {name: one for name, one in found.items() if "classes" in one}
    if measured:
        tables.append(_metrics_table(measured))
        # Of the seeds of an arm, the classes of the first.
        name, one = next(iter(measured.items()))
        tables.append(_class_table(name, one["classes"], others=len(measured) - 1))
    for name, one in found.items():
        if "predictions" in one:
            tables.append(_prediction_table(name, one["predictions"]))
    return tables


def _metrics_table(found: dict[str, dict[str, Any]]) -> Table:
    """Return every metric of some networks, a row for each metric."""
    table = Table(title="fractions, and nats", title_justify="left")
    table.add_column("", overflow="fold")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    networks = list(found.values())
    names = [name for name in networks[0] if name not in ("classes", "note")]
    for name in names:
        cells = [_metric_text(metrics[name]) for metrics in networks]
        table.add_row(name, *cells)
    return table


def _class_table(network: str, classes: dict[str, dict[str, Any]], others: int) -> Table:
    """Return how well each class is recognised, the worst first; of many classes, the worst."""
    table = Table(title=f"classes, by {network}", title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("images", "recall", "precision"):
        table.add_column(heading, justify="right")
    table.add_column("most often taken for", overflow="fold")
    # Classes without images are last.
    ordered = sorted(
        classes.items(), key=lambda item: item[1]["recall"] if item[1]["images"] else math.inf
    )
    for name, row in ordered[:MOST_CLASSES]:
        cells = [_metric_text(row[key]) for key in ("images", "recall", "precision")]
        table.add_row(name, *cells, row["confused_with"] or NO_VALUE)
    left_out = []
    if len(ordered) > MOST_CLASSES:
        left_out.append(f"{len(ordered) - MOST_CLASSES} classes that are better")
    if others:
        left_out.append(f"the classes of {pluralize(others, 'other network')}")
    if left_out:
        table.caption = f"--json has {' and '.join(left_out)}"
    return table


def _prediction_table(network: str, predictions: list[dict[str, Any]]) -> Table:
    """Return the likeliest classes of images without labels."""
    table = Table(title=f"probabilities, by {network}", title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("likeliest classes", overflow="fold")
    for row in predictions:
        classes = [f"{name} {probability:.1%}" for name, probability in row["classes"]]
        table.add_row(row["image"], ", ".join(classes))
    return table


def _arms(results: StudyResults) -> Table:
    title = f"{results.study}: {results.data.test} test images, {spread_note(results)}"
    table = Table(title=title, title_justify="left")
    arms = arm_table(results, TERMINAL)
    table.add_column("arm", overflow="fold")
    for heading in arms.headings:
        table.add_column(heading, justify="right")
    for row in arms.rows:
        table.add_row(row.arm, *row.cells)
    return table


def _comparisons(forest: Forest, *, of_one_seed: bool) -> Table:
    """Return the comparisons of accuracy; with one seed, with the intervals over test images."""
    table = Table(title="comparisons of test accuracy, paired by seed", title_justify="left")
    over = "test images" if of_one_seed else "seeds"
    table.add_column("arm against arm", overflow="fold")
    table.add_column("points", justify="right")
    table.add_column(f"95% interval over {over}", justify="right")
    if not of_one_seed:
        table.add_column("p after Holm", justify="right")
        table.add_column("the first is")
    question = ""
    for row in forest.first:
        if row.question != question:
            question = row.question
            table.add_row(question)
        cells = [row.difference, row.images if of_one_seed else row.seeds]
        if not of_one_seed:
            cells += [row.p_value, row.answer]
        table.add_row(f"  {_label_text(row.label)}", *cells)
    if forest.others:
        table.caption = f"{len(forest.others)} more are in the report"
    return table


def _label_text(label: PairLabel) -> str:
    both = f" ({label.both})" if label.both else ""
    return f"{label.b} against {label.a}{both}"


def _metric_text(value: float | int | None) -> str:
    if value is None:
        return NO_VALUE
    return f"{value:.4f}" if isinstance(value, float) else str(value)
