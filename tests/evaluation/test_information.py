"""The information estimate against its double loop, the integral, and cases with known values."""

import math

import numpy as np
import pytest
from helpers import oracles_analysis as oracles
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.information import mutual_information


def simulated(centres, deviation, num_views, seed=0):
    """Return the outputs on views of each example, and on one more view."""
    generator = np.random.default_rng(seed)
    noise = deviation * generator.normal(size=(len(centres), num_views + 1))
    table = centres[:, None] + noise
    return table[:, :-1], table[:, -1]


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 8), st.floats(0.1, 5))
def test_information_is_its_double_loop_and_at_most_log_n(seed, count, num_views, noise):
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 3, count)
    draws = centres[:, None] + noise * generator.normal(size=(count, num_views))
    values = centres + noise * generator.normal(size=count)
    got = mutual_information(draws, values)
    expected = oracles.mutual_information(draws.tolist(), values.tolist())
    assert got == pytest.approx(expected, abs=1e-8)
    assert got <= math.log(count) + 1e-12


def test_two_collapsed_clusters_have_log_2():
    """The output has the class of an image and nothing else."""
    for seed in range(5):
        draws, values = simulated(np.repeat([-10.0, 10.0], 300), 1.0, 40, seed)
        assert mutual_information(draws, values) == pytest.approx(math.log(2), abs=0.03)


@pytest.mark.parametrize("centres", [np.linspace(-3, 3, 600), np.zeros(600)])
def test_information_is_near_the_integral(centres):
    draws, values = simulated(centres, 1.0, 50)
    exact = oracles.two_cluster_information(centres.tolist(), 1.0, 2000)
    assert mutual_information(draws, values) == pytest.approx(exact, abs=0.06)


def test_the_formula_as_printed_in_the_paper_is_a_constant():
    """It is -1/2 + log(2)/2 for any network: its inner sum compares an example with itself only."""
    for centres in (np.repeat([-10.0, 10.0], 3000), np.linspace(-50, 50, 6000), np.zeros(6000)):
        draws, values = simulated(centres, 1.0, 50)
        printed = oracles.literal_information(draws.tolist(), values.tolist())
        assert printed == pytest.approx(-0.5 + math.log(2) / 2, abs=0.02)
    assert mutual_information(*simulated(np.repeat([-10.0, 10.0], 300), 1.0, 50)) > 0.6


def test_without_noise_information_is_the_entropy_of_the_values():
    values = np.repeat([0.5, 2.0, -1.0], [2, 4, 2])
    entropy = -sum(p * math.log(p) for p in (0.25, 0.5, 0.25))
    for scale in (1.0, 0.1, 1e-3):  # the mean of equal numbers is not always exactly that number
        draws = np.repeat(scale * values[:, None], 3, 1)
        assert mutual_information(draws, scale * values) == pytest.approx(entropy)
    assert mutual_information(np.zeros((4, 3)), np.zeros(4)) == 0
