"""Norms of weights against sums written out."""

import pytest
import torch
from helpers import oracles_norms
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.weight_norms import norms, template_spread, total


def matrix(seed, rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 6))
def test_norms_are_their_sums(seed, rows, columns):
    weight = matrix(seed, rows, columns)
    start = matrix(seed + 1, rows, columns)
    got = norms(weight, start)
    plain = weight.double().tolist()
    assert got["l1"] == pytest.approx(oracles_norms.l1_entry(plain), rel=1e-9)
    assert got["l2"] == pytest.approx(oracles_norms.frobenius(plain), rel=1e-9)
    assert got["inf"] == pytest.approx(oracles_norms.inf(plain), rel=1e-9)
    # The oracle's power iteration may converge slowly.
    assert got["spectral"] == pytest.approx(oracles_norms.spectral(plain), rel=1e-3)
    distance = oracles_norms.frobenius((weight.double() - start.double()).tolist())
    relative = distance / oracles_norms.frobenius(start.double().tolist())
    assert got["distance"] == pytest.approx(distance, rel=1e-9)
    assert got["relative_distance"] == pytest.approx(relative, rel=1e-9)
    assert "distance" not in norms(weight)


def test_norms_of_a_matrix_by_hand():
    """Its squared singular values are the roots of s² - 30 s + 4."""
    got = norms(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    expected = {"l1": 10, "l2": 30**0.5, "spectral": (15 + 221**0.5) ** 0.5, "inf": 7}
    assert got == pytest.approx(expected)


def test_a_convolution_is_a_matrix_with_a_row_for_each_output():
    assert norms(torch.ones(2, 3, 2, 2))["inf"] == 12


def test_all_layers_are_one_vector():
    weights = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[0.0, 4.0]])}
    initial = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[3.0, 0.0]])}
    expected = {"l1": 7, "l2": 5, "distance": 5, "relative_distance": 5 / 18**0.5}
    assert total(weights, initial) == pytest.approx(expected)


def test_the_spread_of_template_norms():
    assert template_spread(torch.eye(5) * 3) == 0
    # Squared norms of 1 and 3 have mean 2 and deviation 1.
    templates = torch.diag(torch.tensor([1.0, 3.0]).sqrt())
    assert template_spread(templates) == pytest.approx(0.5)
