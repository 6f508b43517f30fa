"""Tables: numbers by arm, columns without numbers left out, the order of comparisons."""

import numpy as np
import pytest
from helpers.results import make_comparison, make_results, make_run, runs_of

from distill.report import tables
from distill.storage.study_results import InformationEstimate, QuestionCode


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


def test_comparisons_on_distillation_come_first_and_the_surest_of_a_question():
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
        (QuestionCode.DISTILLATION, 0.2),
        (QuestionCode.DISTILLATION, None),
        (QuestionCode.STUDENT_SMOOTHING, 0.3),
        (QuestionCode.SETTING, 0.01),
    ]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([0.9], "90.00"),  # one seed
        ([0.9, 0.9], "90.00"),  # no spread
        ([0.9, 0.90001], "90.00 ± <0.01"),  # less than is shown
        ([0.9, 0.8], "85.00 ± 7.07"),
    ],
)
def test_no_cell_has_a_spread_of_zero(values, cell):
    (row,) = tables.arm_table(make_results(runs_of("a", values)), [tables.ACCURACY]).rows
    assert row.cells == [cell]
