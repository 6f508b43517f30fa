"""Tables in the terminal: arms, comparisons, and the metrics of a network."""

import io

from helpers.results import make_comparison, make_results, runs_of
from rich.console import Console

from distill.report import tables
from distill.report.terminal_tables import evaluation_tables, terminal_tables


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_the_terminal_shows_arms_and_at_most_some_comparisons():
    results = make_results(runs_of("an_arm", [0.9, 0.8]))
    assert len(terminal_tables(results)) == 1
    many = [make_comparison(b=f"arm{i}") for i in range(tables.MOST_COMPARISONS + 3)]
    arms, comparisons = terminal_tables(make_results(results.runs, comparisons=many))
    assert "an_arm" in text_of(arms)
    assert "85.00 ± 7.07" in text_of(arms)
    # and a row with their question
    assert comparisons.row_count == tables.MOST_COMPARISONS + 1
    assert "3 more" in text_of(comparisons)
    assert all(number in text_of(comparisons) for number in ("+1.00", "+0.50 to +1.50", "0.010"))


def test_with_one_seed_the_interval_is_over_test_images():
    comparison = make_comparison(ci95=None, ci95_images=(-0.002, 0.022), p_value=None, p_holm=None)
    results = make_results(runs_of("an_arm", [0.9]), comparisons=[comparison])
    text = text_of(terminal_tables(results)[1])
    assert "−0.20 to +2.20" in text
    assert "Holm" not in text


def test_metrics_of_networks_are_listed_by_name():
    good = {"images": 3, "recall": 1.0, "precision": 0.75, "confused_with": None}
    poor = {"images": 4, "recall": 0.25, "precision": None, "confused_with": "good"}
    none = {"images": 0, "recall": None, "precision": 0.0, "confused_with": None}
    classes = {"good": good, "none": none, "poor": poor}
    found = {"net": {"top1": 0.5, "count": 7, "top5": None, "classes": classes}}
    metrics, by_class = evaluation_tables(found)
    text = text_of(metrics)
    assert "0.5000" in text
    assert "7" in text
    assert tables.NO_VALUE in text
    rows = [
        line.split()[1] for line in text_of(by_class).splitlines() if " 0." in line or "1.0" in line
    ]
    assert rows == ["poor", "good", "none"]
    assert evaluation_tables({}) == []
    several = evaluation_tables({"seed 0": found["net"], "seed 1": found["net"]})
    assert len(several) == 2
    assert "1 other network" in text_of(several[1])


def test_predictions_of_images_without_labels_are_listed():
    row = {"image": "a.png", "classes": [["cat", 0.75], ["dog", 0.2]]}
    (table,) = evaluation_tables({"net": {"predictions": [row]}})
    assert "a.png" in text_of(table)
    assert "cat 75.0%, dog 20.0%" in text_of(table)
