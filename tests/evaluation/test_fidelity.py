"""Fidelity, stability and diffusion against scipy and plain Python."""

import math

import numpy as np
import pytest
from helpers import oracles, oracles_analysis
from helpers.clusters import clusters, random_logits
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distill.evaluation import fidelity, geometry
from distill.evaluation.arrays import probabilities

SEEDS = st.integers(0, 10_000)


def test_agreement_and_divergence():
    logits, _ = random_logits(0)
    other, _ = random_logits(1)
    assert fidelity.agreement(logits, logits) == 1
    assert fidelity.kl_to_teacher(logits, logits + 5) == pytest.approx(0, abs=1e-12)
    expected = [
        stats.entropy(oracles.softmax(teacher), oracles.softmax(student))
        for teacher, student in zip(other.tolist(), logits.tolist(), strict=True)
    ]
    assert fidelity.kl_to_teacher(logits, other) == pytest.approx(np.mean(expected))
    equal = (logits.argmax(1) == other.argmax(1)).sum() / len(logits)
    assert fidelity.agreement(logits, other) == pytest.approx(equal)


@given(SEEDS)
def test_stability_is_its_plain_form(seed):
    logits, labels = clusters(seed, count=30, classes=4, dimensions=4)
    labels = np.where(labels == 2, 1, labels)  # a class without examples
    expected = oracles_analysis.stability(probabilities(logits).tolist(), labels.tolist())
    assert fidelity.stability(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_a_teacher_with_equal_outputs_for_a_class_is_stable():
    labels = np.arange(12) % 3
    assert fidelity.stability(2 * np.eye(3)[labels], labels) == pytest.approx(1)
    random = np.random.default_rng(0).normal(size=(12, 3))
    assert fidelity.stability(random, labels) < 0.99


@given(SEEDS)
def test_diffusion_is_its_plain_form(seed):
    logits, labels = clusters(seed, count=30, classes=4, dimensions=4)
    labels = np.where(labels == 2, 1, labels)
    near = geometry.near_classes(geometry.shared_probability(logits, labels), 1)
    plain_near = [set(np.flatnonzero(row)) for row in near]
    base, moved = np.random.default_rng(seed).normal(size=(2, 4, 3))
    assert fidelity.diffusion(base, moved, near) == pytest.approx(
        oracles_analysis.diffusion(base.tolist(), moved.tolist(), plain_near), abs=1e-9
    )
    assert fidelity.diffusion(base, 7 * base, near) == pytest.approx(0, abs=1e-9)
    assert math.isnan(fidelity.diffusion(base, np.full((4, 3), np.nan), near))

    # A class without examples is in no pair.
    without_last = moved.copy()
    without_last[3] = np.nan
    near_of_three = near[:3, :3]
    if 0 < near_of_three.sum() < 6:
        expected = oracles_analysis.diffusion(
            base[:3].tolist(),
            moved[:3].tolist(),
            [set(np.flatnonzero(row)) for row in near_of_three],
        )
        assert fidelity.diffusion(base, without_last, near) == pytest.approx(expected, abs=1e-9)


def test_diffusion_is_positive_where_similar_classes_come_together():
    base = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0]])
    near = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    closer = np.array([[0.4, 0], [0.6, 0], [10.4, 0], [10.6, 0]])
    assert fidelity.diffusion(base, closer, near) == pytest.approx(math.log(5), abs=0.01)
