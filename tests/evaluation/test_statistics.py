"""Statistics over seeds against tables, beta functions and procedures by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betainc

from distill.evaluation import statistics

# The 97.5% quantile of Student's t with n - 1 degrees of freedom, from a printed table.
QUANTILES = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_the_paired_test_is_students(pairs):
    """The tail of t is an incomplete beta function."""
    a = [pair[0] for pair in pairs]
    b = [pair[1] for pair in pairs]
    n = len(pairs)
    got = statistics.compare(a, b)
    differences = np.array(b) - np.array(a)
    mean = differences.mean()
    assert got.difference == pytest.approx(mean, abs=1e-12)
    if got.ci95 is None:
        assert got.p_value is None
        assert np.ptp(differences) < 1e-9
        return
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    half = QUANTILES[n] * error
    assert got.ci95 == pytest.approx((mean - half, mean + half), abs=1e-4 * half + 1e-9)
    t = mean / error
    p = betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t))
    assert got.p_value == pytest.approx(p, rel=1e-6, abs=1e-9)


def test_one_seed_and_equal_differences_have_no_interval():
    assert statistics.compare([0.5], [0.6]).ci95 is None
    assert statistics.compare([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p_value is None
    assert statistics.compare([0.0, 0.0], [0.0, 3.6e-230]).p_value is None  # its square is 0
    assert statistics.mean_interval([0.5]) == (0.5, 0.0, None)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="1 and 2"):
        statistics.compare([0.1], [0.1, 0.2])


def test_holms_adjustment_by_hand():
    """0.01·4, 0.02·3, 0.03·2 and 0.04·1 in rising order, each raised to the largest before it."""
    adjusted = statistics.holm([0.03, 0.01, None, 0.04, 0.02])
    assert adjusted == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([None]) == [None]


def test_the_spread_behind_an_interval_is_that_of_its_values():
    values = [0.2, 0.5, 0.9, 0.4]
    mean, sd, (low, high) = statistics.mean_interval(values)
    assert mean == pytest.approx((low + high) / 2)
    assert statistics.spread_of_interval((high - low) / 2, 4) == pytest.approx(sd)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_power_are_those_of_published_tables(effect, seeds):
    """Paired t-test, two-sided 5%, 80% power: small to large effects (G*Power; Cohen 1988)."""
    assert statistics.seeds_for_power(effect) == seeds


def test_seeds_for_power_by_simulation():
    """A thousand studies of that many seeds find the effect in about 80% of the cases."""
    effect, alpha = 0.7, 0.01
    count = statistics.seeds_for_power(effect, alpha)
    values = np.random.default_rng(0).normal(effect, 1, size=(2000, count))
    found = stats.ttest_1samp(values, 0, axis=1).pvalue < alpha
    assert 0.77 < found.mean() < 0.86
    assert statistics.seeds_for_power(0.01, most=50) == 51


@pytest.mark.parametrize(("count", "alpha"), [(2, 0.05), (5, 0.05), (20, 0.005), (3, 0.0003)])
def test_the_effect_for_power_is_found_with_that_probability(count, alpha):
    effect = statistics.effect_for_power(count, alpha)
    assert statistics.power(effect, count, alpha) == pytest.approx(0.8, abs=1e-6)
    assert statistics.seeds_for_power(1.001 * effect, alpha) <= count
    assert statistics.seeds_for_power(0.9 * effect, alpha) > count or count == 2
