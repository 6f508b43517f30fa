"""Statistics over seeds against tables, beta functions and procedures by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
