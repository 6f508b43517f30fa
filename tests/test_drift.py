"""Norms of weights and their drift, against sums written out."""

import pytest
import torch
from helpers import oracles
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.weight_norms import norms, template_spread, total
from distill.models.hooks import weight_decay_params
from distill.models.small import CifarResNet


def matrix(seed, rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 6))
def test_norms_are_their_sums(seed, rows, columns):
    w, start = matrix(seed, rows, columns), matrix(seed + 1, rows, columns)
    got, plain = norms(w, start), w.double().tolist()
    assert got["l1"] == pytest.approx(oracles.l1_entry(plain), rel=1e-9)
    assert got["l2"] == pytest.approx(oracles.frobenius(plain), rel=1e-9)
    assert got["inf"] == pytest.approx(oracles.inf(plain), rel=1e-9)
    assert got["spectral"] == pytest.approx(
        oracles.spectral(plain), rel=1e-3
    )  # power iteration may be slow
    moved = oracles.frobenius((w.double() - start.double()).tolist())
    assert got["distance"] == pytest.approx(moved, rel=1e-9)
    assert got["relative_distance"] == pytest.approx(
        moved / oracles.frobenius(start.double().tolist()), rel=1e-9
    )
    assert "distance" not in norms(w)


def test_norms_of_a_matrix_by_hand():
    got = norms(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    # singular values: the roots of s^4 - 30 s^2 + 4
    assert got == pytest.approx(
        {"l1": 10, "l2": 30**0.5, "spectral": (15 + 221**0.5) ** 0.5, "inf": 7}
    )
    assert (
        norms(torch.ones(2, 3, 2, 2))["inf"] == 12
    )  # a convolution is a matrix with a row for each output


def test_all_layers_are_one_vector():
    weights, initial = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[0.0, 4.0]])}, {
        "a": torch.tensor([[3.0]]), "b": torch.tensor([[3.0, 0.0]])}  # fmt: skip
    expected = {"l1": 7, "l2": 5, "distance": 5, "relative_distance": 5 / 18**0.5}
    assert total(weights, initial) == pytest.approx(expected)


def test_the_spread_of_template_norms():
    assert template_spread(torch.eye(5) * 3) == 0
    assert template_spread(torch.diag(torch.tensor([1.0, 3.0]).sqrt())) == pytest.approx(
        0.5
    )  # 1 and 3: 2 ± 1


def test_biases_and_norms_are_left_alone():
    names = set(weight_decay_params(CifarResNet(8)))
    assert "conv1.weight" in names and "head.weight" in names
    assert not any(
        "bn" in name or name.endswith("bias") or ".downsample.1" in name for name in names
    )
