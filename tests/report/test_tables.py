"""Tables: numbers by arm, columns without numbers left out, the order of comparisons."""

import io

import numpy as np
from helpers.results import make_comparison, make_results, make_run, runs_of
from rich.console import Console

from distill.report import tables
from distill.storage.study_results import InformationEstimate, QuestionCode


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_a_cell_is_mean_and_standard_deviation_over_seeds():
    values = [0.90, 0.95, 0.91]
    table = tables.arm_table(make_results(runs_of("a", values)), tables.ARMS)
    (row,) = table.rows
    cells = dict(zip(table.headings, row.cells, strict=True))
    mean, sd = 100 * np.mean(values), 100 * np.std(values, ddof=1)
    assert cells["accuracy, %"] == f"{mean:.2f} ± {sd:.2f}"
    # a setting is the same in every seed
    assert cells["weights, millions"] == "0.001"
    assert row.seeds == 3


def test_columns_and_arms_without_numbers_are_left_out():
    runs = [make_run("attacked", test={"fgsm": 0.5}), make_run("other")]
    table = tables.arm_table(make_results(runs), tables.ROBUSTNESS)
    assert table.headings == ["FGSM, %"]
    assert [row.arm for row in table.rows] == ["attacked"]
    assert tables.arm_table(make_results([make_run()]), tables.ROBUSTNESS) is None


def test_a_number_that_one_seed_lacks_is_a_dash():
    runs = [make_run("a", 0, test={"fgsm": 0.5, "pgd_l2": 0.1}), make_run("a", 1, test={"fgsm": 0})]
    table = tables.arm_table(make_results(runs), tables.ROBUSTNESS)
    assert table.headings == ["FGSM, %"]


def test_the_last_information_is_that_of_the_finished_network():
    run = make_run(information=[InformationEstimate(0, 0.1, 9), InformationEstimate(3, 0.7, 9)])
    assert tables.last_information(run) == 0.7
    assert tables.last_information(make_run()) is None


def test_comparisons_on_smoothing_come_first_and_the_surest_of_a_question():
    def comparison(code, p_value, metric="top1"):
        return make_comparison(
            question_code=code, question=code.value, p_value=p_value, metric=metric
        )

    comparisons = [
        comparison(QuestionCode.SETTING, 0.01),
        comparison(QuestionCode.DISTILLATION, None),
        comparison(QuestionCode.DISTILLATION, 0.2),
        comparison(QuestionCode.STUDENT_SMOOTHING, 0.3),
        comparison(QuestionCode.STUDENT_SMOOTHING, 0.1, metric="nll"),
    ]
    ordered = tables.accuracy_comparisons(make_results([], comparisons=comparisons))
    assert [(one.question_code, one.p_value) for one in ordered] == [
        (QuestionCode.STUDENT_SMOOTHING, 0.3),
        (QuestionCode.DISTILLATION, 0.2),
        (QuestionCode.DISTILLATION, None),
        (QuestionCode.SETTING, 0.01),
    ]


def test_the_terminal_shows_arms_and_at_most_some_comparisons():
    results = make_results(runs_of("an_arm", [0.9, 0.8]))
    assert len(tables.terminal_tables(results)) == 1
    many = [make_comparison(b=f"arm{i}") for i in range(tables.MOST_COMPARISONS + 3)]
    arms, comparisons = tables.terminal_tables(make_results(results.runs, comparisons=many))
    assert "an_arm" in text_of(arms)
    assert "85.00 ± 7.07" in text_of(arms)
    assert comparisons.row_count == tables.MOST_COMPARISONS
    assert "3 more" in text_of(comparisons)


def test_metrics_of_networks_are_listed_by_name():
    text = text_of(tables.metrics_table({"net": {"top1": 0.5, "count": 7, "top5": None}}))
    assert "0.5000" in text
    assert "7" in text
    assert tables.NO_VALUE in text
    assert tables.metrics_table({}).row_count == 0
