"""The forest plot: where numbers stand on its axis, what is cut off, and which rows come first."""

import pytest
from helpers.results import make_comparison, make_results
from hypothesis import given
from hypothesis import strategies as st

from distill.report.forest import make_forest
from distill.report.tables import MOST_COMPARISONS
from distill.storage.study_results import Verdict


def forest(*comparisons):
    return make_forest(make_results([], comparisons=list(comparisons), seeds=[0, 1, 2]))


def test_without_comparisons_there_is_no_plot():
    assert forest() is None
    assert forest(make_comparison(metric="nll")) is None


fractions = st.floats(-1, 1, allow_subnormal=False).map(lambda value: round(value, 6))


@given(st.lists(st.tuples(fractions, fractions, fractions).map(sorted), min_size=1, max_size=5))
def test_the_axis_is_linear_and_holds_every_difference(triples):
    """Each place follows from those of zero and of one tick, unless it is cut off."""
    rows = [make_comparison(ci95=(low, high), difference=middle) for low, middle, high in triples]
    plot = forest(*rows)
    (place, text), *_ = [tick for tick in plot.ticks if tick[1] != "0"] or [(None, None)]
    assert 0 <= plot.zero <= 100
    if place is None:
        return
    scale = (place - plot.zero) / float(text.replace("−", "-"))
    for row in plot.rows:
        assert row.at == pytest.approx(plot.zero + scale * 100 * row.comparison.difference, abs=0.5)
        low, high = row.comparison.ci95
        if not row.over_seeds.cut_left:
            assert row.over_seeds.left == pytest.approx(plot.zero + scale * 100 * low, abs=0.5)
        if not row.over_seeds.cut_right:
            assert row.over_seeds.right == pytest.approx(plot.zero + scale * 100 * high, abs=0.5)
        assert row.over_seeds.left <= row.at <= row.over_seeds.right


def test_an_interval_that_is_far_wider_than_the_differences_is_cut_off():
    """Two seeds can give an interval of fifty points around a difference of one."""
    (row,) = forest(make_comparison(difference=0.01, ci95=(-0.5, 0.52))).rows
    assert (row.over_seeds.cut_left, row.over_seeds.cut_right) == (True, True)
    assert (row.over_seeds.left, row.over_seeds.right) == (0, 100)
    (row,) = forest(make_comparison()).rows
    assert (row.over_seeds.cut_left, row.over_seeds.cut_right) == (False, False)


def test_a_row_has_the_numbers_of_its_comparison():
    one_seed = make_comparison(
        ci95=None, p_value=None, p_holm=None, ci95_images=(-0.01, 0.03), verdict=Verdict.ONE_SEED
    )
    (row,) = forest(one_seed).rows
    assert row.over_seeds is None
    assert (row.difference, row.images, row.seeds) == ("+1.00", "−1.00 to +3.00", "–")
    assert row.over_images.left < row.at < row.over_images.right


def test_of_many_comparisons_each_question_shows_its_surest():
    comparisons = [
        make_comparison(question=question, b=f"arm{i}", p_value=(i + 1) / 100)
        for question in ("first?", "second?")
        for i in range(20)
    ]
    plot = forest(*comparisons)
    assert len(plot.first) == MOST_COMPARISONS
    assert len(plot.others) == 40 - MOST_COMPARISONS
    for question in ("first?", "second?"):
        shown = [row.comparison.p_value for row in plot.first if row.question == question]
        hidden = [row.comparison.p_value for row in plot.others if row.question == question]
        assert max(shown) < min(hidden)
