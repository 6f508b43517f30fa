"""Numbers from within networks against slow forms written from the formulas, by somebody who had not seen the code."""

import math

import numpy as np
import oracles_inside as oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation import calibration, fidelity, geometry, information
from distill.losses import optimal_logit_gap

SEEDS = st.integers(0, 10_000)


def clouds(seed, count=24, classes=4, dimensions=5):
    """Features and labels, every class there, of unequal sizes."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    centres = generator.normal(0, generator.uniform(0, 3), (classes, dimensions))
    return centres[labels] + generator.normal(size=(count, dimensions)), labels


@given(SEEDS, st.sampled_from([2, 3, 4]), st.sampled_from([2, 5, 9]))
def test_separation_and_collapse_are_their_double_loops(seed, classes, dimensions):
    x, y = clouds(seed, classes=classes, dimensions=dimensions)
    if seed % 3 == 0:
        x[0] = 0  # a ReLU layer may say nothing of an image
    rows, labels = x.tolist(), y.tolist()
    assert geometry.class_separation(x, y) == pytest.approx(
        oracles.class_separation(rows, labels), abs=1e-10
    )
    assert geometry.nc1(x, y) == pytest.approx(oracles.nc1(rows, labels), rel=1e-6)
    assert geometry.nc1(100 * x, y) == pytest.approx(geometry.nc1(x, y))


def test_what_is_collapsed_is_told_so():
    means = np.random.default_rng(0).normal(size=(4, 6))
    y = np.arange(20) % 4
    assert (
        geometry.nc1(means[y], y) == pytest.approx(0, abs=1e-20)
        and geometry.within_between(means[y], y) < 1e-20
    )
    assert geometry.class_separation(np.eye(4)[y], y) == pytest.approx(1)
    assert geometry.nc1(np.random.default_rng(0).permutation(np.ones((20, 3))), y) == math.inf
    for number in (geometry.nc1, geometry.within_between, geometry.class_separation):
        with pytest.raises(ValueError, match="two classes"):
            number(means[y], np.zeros(20, int))


@given(SEEDS)
def test_distances_to_wrong_templates_and_logit_gaps(seed):
    x, y = clouds(seed)
    templates = np.random.default_rng(seed + 1).normal(size=(4, 5))
    expected = oracles.wrong_template_spread(x.tolist(), templates.tolist(), y.tolist())
    assert geometry.wrong_template_spread(x, templates, y) == pytest.approx(expected, rel=1e-9)
    logits = x @ templates.T
    assert geometry.logit_gap(logits, y) == pytest.approx(
        oracles.logit_gap(logits.tolist(), y.tolist()), abs=1e-9
    )
    centre = np.zeros((1, 3))  # equally far from the corners of a regular simplex
    assert geometry.wrong_template_spread(centre, np.eye(3), np.array([1])) == 0


def test_numbers_do_not_depend_on_how_many_rows_are_looked_at_together(monkeypatch):
    x, y = clouds(0, count=60)
    logits = (3 * x[:, :4]).astype(np.float32)

    def every():
        return [
            *geometry.logit_gap(logits, y),
            fidelity.stability(logits, y),
            calibration.ece_equal_mass(logits, y),
            calibration.ece_classwise(logits, y),
            *geometry.shared_probability(logits, y).ravel(),
        ]

    expected = every()
    monkeypatch.setattr(calibration, "AT_ONCE", 4 * 7 + 1)
    assert every() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.6])
def test_the_optimum_that_gaps_are_held_against(classes, smoothing):
    assert optimal_logit_gap(classes, smoothing) == pytest.approx(
        oracles.optimal_gap(smoothing, classes), abs=1e-5
    )
    logits = optimal_logit_gap(classes, smoothing) * np.eye(classes)
    gap, spread = geometry.logit_gap(logits, np.arange(classes))
    assert gap == pytest.approx(optimal_logit_gap(classes, smoothing)) and spread < 1e-6
    assert calibration.effective_smoothing(logits, np.arange(classes)) == pytest.approx(smoothing)


@given(SEEDS)
def test_the_space_of_templates_keeps_their_distances(seed):
    templates = np.random.default_rng(seed).normal(size=(5, 12))
    basis = geometry.template_space(templates)
    assert basis.shape == (12, 4) and np.allclose(basis.T @ basis, np.eye(4), atol=1e-12)
    for a in templates:
        for b in templates:
            assert np.linalg.norm((a - b) @ basis) == pytest.approx(np.linalg.norm(a - b), abs=1e-6)
    plane = geometry.template_plane(templates[:3])
    assert np.allclose(basis @ (basis.T @ plane), plane, atol=1e-9)  # the plane lies in it


# ------------------------------------------------------------------------------------------------ information


@given(SEEDS, st.integers(2, 30), st.integers(1, 8), st.floats(0.1, 5))
def test_information_is_its_double_loop_and_at_most_log_n(seed, count, draws, noise):
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 3, count)
    table = centres[:, None] + noise * generator.normal(size=(count, draws))
    values = centres + noise * generator.normal(size=count)
    got = information.mutual_information(table, values)
    assert got == pytest.approx(
        oracles.mutual_information(table.tolist(), values.tolist()), abs=1e-8
    )
    assert got <= math.log(count) + 1e-12


def simulated(centres, sd, draws, seed=0):
    generator = np.random.default_rng(seed)
    table = centres[:, None] + sd * generator.normal(size=(len(centres), draws + 1))
    return table[:, :-1], table[:, -1]


def test_two_collapsed_clusters_hold_log_2():
    """Nothing is known of an image but its class."""
    for seed in range(5):
        draws, values = simulated(np.repeat([-10.0, 10.0], 300), 1.0, 40, seed)
        assert information.mutual_information(draws, values) == pytest.approx(math.log(2), abs=0.03)


@pytest.mark.parametrize(("centres", "sd"), [(np.linspace(-3, 3, 600), 1.0), (np.zeros(600), 1.0)])
def test_information_is_near_the_integral(centres, sd):
    draws, values = simulated(centres, sd, 50)
    exact = oracles.two_cluster_information(centres.tolist(), sd, 2000)
    assert information.mutual_information(draws, values) == pytest.approx(exact, abs=0.06)


def test_the_printed_formula_is_a_constant():
    """-1/2 + log(2)/2 whatever the network, since its inner sum compares an example with itself alone."""
    for centres in (np.repeat([-10.0, 10.0], 3000), np.linspace(-50, 50, 6000), np.zeros(6000)):
        draws, values = simulated(centres, 1.0, 50)
        printed = oracles.literal_information(draws.tolist(), values.tolist())
        assert printed == pytest.approx(-0.5 + math.log(2) / 2, abs=0.02)
    collapsed = information.mutual_information(*simulated(np.repeat([-10.0, 10.0], 300), 1.0, 50))
    assert collapsed > 0.6  # what the formula is meant to tell


def test_without_any_noise_information_is_the_entropy_of_the_values():
    values = np.repeat([0.5, 2.0, -1.0], [2, 4, 2])
    entropy = -sum(p * math.log(p) for p in (0.25, 0.5, 0.25))
    for scale in (1.0, 0.1, 1e-3):  # the mean of equal numbers is not always that number
        table = np.repeat(scale * values[:, None], 3, 1)
        assert information.mutual_information(table, scale * values) == pytest.approx(entropy)
    assert information.mutual_information(np.zeros((4, 3)), np.zeros(4)) == 0


# ------------------------------------------------------------------------------------ calibration and fidelity


def test_calibration_errors_are_those_of_independent_forms_on_a_thousand_cases():
    """With ties, and with confidences of exactly 1."""
    ones = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        count, classes = int(generator.integers(1, 40)), int(generator.integers(2, 6))
        logits = generator.integers(0, 4, (count, classes)).astype(float)
        sharp = generator.random(count) < 0.3
        logits[sharp, 0] += 800
        if seed % 2:
            logits[~sharp] += generator.normal(size=logits[~sharp].shape)
        labels = generator.integers(0, classes, count)
        p = np.exp(calibration.log_probabilities(logits))
        ones += (p == 1).any()
        confidence, correct = p.max(1).tolist(), (logits.argmax(1) == labels).tolist()
        expected = {
            calibration.ece: oracles.binned_gap(
                [min(14, max(0, math.ceil(c * 15) - 1)) for c in confidence], correct, confidence
            ),
            calibration.ece_equal_mass: oracles.equal_mass_ece(confidence, correct),
            calibration.ece_classwise: oracles.classwise_ece(p.tolist(), labels.tolist()),
        }
        for number, value in expected.items():
            assert number(logits, labels) == pytest.approx(value, abs=1e-10), (seed, number)
    assert ones > 500


@given(SEEDS)
def test_stability_and_diffusion(seed):
    x, y = clouds(seed, count=30, classes=4, dimensions=4)
    y = np.where(y == 2, 1, y)  # a class that does not occur
    p = np.exp(calibration.log_probabilities(x))
    assert fidelity.stability(x, y) == pytest.approx(
        oracles.stability(p.tolist(), y.tolist()), abs=1e-12
    )
    shared = geometry.shared_probability(x, y)
    near = oracles.near_classes(p.tolist(), y.tolist(), 1)
    got = geometry.near_classes(shared, 1)
    assert [set(np.flatnonzero(row)) for row in got] == list(map(set, near))
    base, moved = np.random.default_rng(seed).normal(size=(2, 4, 3))
    assert fidelity.diffusion(base, moved, got) == pytest.approx(
        oracles.diffusion(base.tolist(), moved.tolist(), near), abs=1e-9
    )
    assert fidelity.diffusion(base, 7 * base, got) == pytest.approx(0, abs=1e-9)
    assert math.isnan(fidelity.diffusion(base, np.full((4, 3), np.nan), got))
    gone = np.vstack(
        [moved[:3], np.full((1, moved.shape[1]), np.nan)]
    )  # a class without examples counts in no pair
    three = np.array(got)[:3, :3]
    if 0 < three.sum() < 6:
        expected = oracles.diffusion(
            base[:3].tolist(), moved[:3].tolist(), [set(np.flatnonzero(row)) for row in three]
        )
        assert fidelity.diffusion(base, gone, np.array(got)) == pytest.approx(expected, abs=1e-9)


def test_diffusion_is_positive_where_similar_classes_come_together():
    base = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0]])
    near = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    closer = np.array([[0.4, 0], [0.6, 0], [10.4, 0], [10.6, 0]])
    assert fidelity.diffusion(base, closer, near) == pytest.approx(math.log(5), abs=0.01)


def test_a_teacher_that_says_one_thing_of_a_class_is_stable():
    y = np.arange(12) % 3
    assert fidelity.stability(2 * np.eye(3)[y], y) == pytest.approx(1)
    assert fidelity.stability(np.random.default_rng(0).normal(size=(12, 3)), y) < 0.99
