"""Planes, similar classes and clusters against plain Python and against identities."""

import math

import numpy as np
import pytest
from helpers import oracles_analysis as oracles
from helpers.clusters import clusters
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation import calibration, geometry
from distill.evaluation.arrays import probabilities
from distill.losses import optimal_logit_gap

SEEDS = st.integers(0, 10_000)

# ------------------------------------------------------------------------ projections


@given(SEEDS)
def test_the_plane_keeps_the_distances_of_the_templates(seed):
    templates = np.random.default_rng(seed).normal(size=(3, 20))
    basis = geometry.template_plane(templates)
    assert np.allclose(basis.T @ basis, np.eye(2), atol=1e-9)
    points = geometry.project(templates, templates, basis)
    assert points.sum(0) == pytest.approx(0, abs=1e-6)  # their mean is the origin
    for i in range(3):
        for j in range(3):
            distance = np.linalg.norm(templates[i] - templates[j])
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(distance, abs=1e-9)
    # A step out of the plane changes no projection.
    off_plane = templates + 3 * np.linalg.svd(basis.T)[2][-1]
    assert np.allclose(geometry.project(off_plane, templates, basis), points, atol=1e-6)


@pytest.mark.parametrize("templates", [[[0.0, 0, 0], [1, 1, 1], [2, 2, 2]], np.ones((3, 4))])
def test_templates_on_a_line_are_refused(templates):
    with pytest.raises(ValueError, match="on a line"):
        geometry.template_plane(np.array(templates))


@given(SEEDS)
def test_the_space_of_templates_keeps_their_distances(seed):
    templates = np.random.default_rng(seed).normal(size=(5, 12))
    basis = geometry.template_space(templates)
    assert basis.shape == (12, 4)
    assert np.allclose(basis.T @ basis, np.eye(4), atol=1e-12)
    for a in templates:
        for b in templates:
            assert np.linalg.norm((a - b) @ basis) == pytest.approx(np.linalg.norm(a - b), abs=1e-6)
    plane = geometry.template_plane(templates[:3])
    assert np.allclose(basis @ (basis.T @ plane), plane, atol=1e-9)  # the plane is in the space


# ------------------------------------------------------------------------ similar classes


def test_the_most_confused_classes():
    p = np.full((6, 6), 0.01) + 0.9 * np.eye(6)
    p[1, 4] = p[4, 1] = 0.4
    p[4, 2] = 0.2
    p[0, 1] = p[1, 0] = p[0, 4] = p[4, 0] = 1e-4
    p /= p.sum(1, keepdims=True)
    shared = geometry.shared_probability(np.log(p), np.arange(6))
    assert geometry.most_confused(shared) == [1, 4, 2]
    assert geometry.confused_and_far(shared) == [1, 4, 0]


@given(SEEDS)
def test_near_classes_are_those_of_the_plain_form(seed):
    logits, labels = clusters(seed, count=30, classes=4, dimensions=4)
    labels = np.where(labels == 2, 1, labels)  # a class without examples
    near = geometry.near_classes(geometry.shared_probability(logits, labels), 1)
    expected = oracles.near_classes(probabilities(logits).tolist(), labels.tolist(), 1)
    assert [set(np.flatnonzero(row)) for row in near] == [set(found) for found in expected]


# ------------------------------------------------------------------------ clusters


@given(SEEDS, st.sampled_from([2, 3, 4]), st.sampled_from([2, 5, 9]))
def test_separation_and_collapse_are_their_double_loops(seed, classes, dimensions):
    x, y = clusters(seed, classes=classes, dimensions=dimensions)
    if seed % 3 == 0:
        x[0] = 0  # as of an image for which no ReLU is active
    rows, labels = x.tolist(), y.tolist()
    separation = oracles.class_separation(rows, labels)
    assert geometry.class_separation(x, y) == pytest.approx(separation, abs=1e-10)
    assert geometry.nc1(x, y) == pytest.approx(oracles.nc1(rows, labels), rel=1e-6)
    assert geometry.nc1(100 * x, y) == pytest.approx(geometry.nc1(x, y))


def test_collapsed_clusters_have_the_extreme_values():
    means = np.random.default_rng(0).normal(size=(4, 6))
    labels = np.arange(20) % 4
    assert geometry.nc1(means[labels], labels) == pytest.approx(0, abs=1e-20)
    assert geometry.within_between(means[labels], labels) < 1e-20
    assert geometry.class_separation(np.eye(4)[labels], labels) == pytest.approx(1)
    assert geometry.nc1(np.ones((20, 3)), labels) == math.inf


def test_one_class_alone_has_no_clusters():
    features = np.random.default_rng(0).normal(size=(20, 6))
    for metric in (geometry.nc1, geometry.within_between, geometry.class_separation):
        with pytest.raises(ValueError, match="two classes"):
            metric(features, np.zeros(20, int))


def test_within_between_is_its_double_loop():
    """Variance components: SS_W = (N - K) w and SS_B = (K - 1) w + (N - Σn²/N) b in expectation."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    x = generator.normal(size=(60, 5)) + generator.normal(size=(3, 5))[labels]
    means = [np.mean([x[i] for i in range(60) if labels[i] == k], 0) for k in range(3)]
    within = sum(np.sum((x[i] - means[labels[i]]) ** 2) for i in range(60)) / 57
    sum_between = sum(np.sum((means[labels[i]] - x.mean(0)) ** 2) for i in range(60))
    between = (sum_between - 2 * within) / (60 - 1400 / 60)
    assert geometry.within_between(x, labels) == pytest.approx(within / between)
    with pytest.raises(ValueError, match="two examples of a class"):
        geometry.within_between(x[:2], np.array([0, 1]))


@pytest.mark.parametrize("per_class", [2, 10, 50])
def test_within_between_does_not_depend_on_the_number_of_examples(per_class):
    """Class means of variance 4 and examples of variance 1 about them: 1/4, for any number."""
    generator = np.random.default_rng(per_class)
    labels = np.arange(400 * per_class) % 400
    x = generator.normal(size=(len(labels), 8)) + 2 * generator.normal(size=(400, 8))[labels]
    assert geometry.within_between(x, labels) == pytest.approx(0.25, rel=0.1)


# ------------------------------------------------------------------------ templates and logits


@given(SEEDS)
def test_distances_to_wrong_templates_and_logit_gaps_are_their_plain_forms(seed):
    x, y = clusters(seed)
    templates = np.random.default_rng(seed + 1).normal(size=(4, 5))
    expected = oracles.wrong_template_spread(x.tolist(), templates.tolist(), y.tolist())
    assert geometry.wrong_template_spread(x, templates, y) == pytest.approx(expected, rel=1e-9)
    logits = x @ templates.T
    expected = oracles.logit_gap(logits.tolist(), y.tolist())
    assert geometry.logit_gap(logits, y) == pytest.approx(expected, abs=1e-9)


def test_the_centre_of_a_regular_simplex_is_equally_far_from_all_templates():
    centre = np.zeros((1, 3))
    assert geometry.wrong_template_spread(centre, np.eye(3), np.array([1])) == 0


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.6])
def test_the_logit_gap_of_an_optimal_network(classes, smoothing):
    optimum = optimal_logit_gap(classes, smoothing)
    assert optimum == pytest.approx(oracles.optimal_gap(smoothing, classes), abs=1e-5)
    logits = optimum * np.eye(classes)
    gap, deviation = geometry.logit_gap(logits, np.arange(classes))
    assert gap == pytest.approx(optimum)
    assert deviation < 1e-6
    assert calibration.effective_smoothing(logits, np.arange(classes)) == pytest.approx(smoothing)
