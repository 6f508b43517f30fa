"""Metrics against scikit-learn, torchmetrics, scipy and slow forms; clusters against their identities."""

import math

import numpy as np
import pytest
import torch
from helpers import oracles
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betainc
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from distill.evaluation import calibration, fidelity, geometry, statistics


def case(seed, count=200, classes=7, scale=3.0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, scale, (count, classes)), generator.integers(0, classes, count)


def probabilities(logits):
    return np.array([oracles.softmax(row) for row in logits.tolist()])


@given(st.integers(0, 10_000))
def test_metrics_are_those_of_other_libraries(seed):
    logits, labels = case(seed)
    p, k = probabilities(logits), range(7)
    assert calibration.nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=k), rel=1e-9)
    assert calibration.brier(logits, labels) == pytest.approx(
        brier_score_loss(labels, p, labels=k, scale_by_half=False)
    )
    for n in (1, 3):
        assert calibration.top_k_correct(logits, labels, n).mean() == pytest.approx(
            top_k_accuracy_score(labels, p, k=n, labels=k)
        )
    assert calibration.ece(logits, labels) == pytest.approx(
        oracles.ece(p.max(1).tolist(), (p.argmax(1) == labels).tolist()), abs=1e-12
    )
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), 7, n_bins=15)
    assert calibration.ece(logits, labels) == pytest.approx(theirs.item(), abs=1e-6)


def test_confidences_of_exactly_one_and_ties_are_binned_and_counted():
    logits = np.array([[800.0, 0, 0], [800.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0]])
    labels = np.array([0, 1, 0, 1])
    diagram = calibration.reliability(logits, labels)
    assert diagram.count[-1] == 2 and diagram.confidence[-1] == 1 and diagram.accuracy[-1] == 0.5
    assert calibration.top_k_correct(logits, labels).tolist() == [
        True,
        False,
        True,
        False,
    ]  # as argmax
    assert calibration.ece(logits, labels) == pytest.approx(0.5 * 0.5 + 0.5 * (0.5 - 1 / 3))


@given(st.integers(0, 1000), st.floats(0.3, 3))
def test_the_fitted_temperature_is_the_optimum_of_logistic_regression(seed, temperature):
    """With two classes, temperature scaling is logistic regression on the logit difference without intercept."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 2, 400)
    labels = (generator.random(400) < 1 / (1 + np.exp(-z / temperature))).astype(int)
    logits = np.stack([np.zeros(400), z], 1)
    slope = (
        LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
        .fit(z[:, None], labels)
        .coef_[0, 0]
    )
    assert calibration.fit_temperature(logits, labels) == pytest.approx(1 / slope, rel=1e-3)


def test_a_temperature_without_an_optimum_stays_finite():
    logits = 5 * np.eye(10)[np.arange(50) % 10]
    fitted = calibration.fit_temperature(logits, np.arange(50) % 10)
    assert 0.01 <= fitted <= 100 and calibration.nll(logits / fitted, np.arange(50) % 10) < 1e-12


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.6])
def test_gamma_is_the_smoothing_of_an_ideal_teacher(classes, smoothing):
    labels = np.arange(3 * classes) % classes
    q = np.full((len(labels), classes), smoothing / classes)
    q[np.arange(len(labels)), labels] += 1 - smoothing
    assert calibration.effective_smoothing(np.log(q) + 3, labels) == pytest.approx(
        smoothing, rel=1e-9
    )


def test_gamma_by_temperature_is_papers_table():
    """paper.md §4.2: a logit gap of 10, K = 10."""
    logits, labels = 10 * np.eye(10), np.arange(10)
    found = [calibration.effective_smoothing(logits, labels, t) for t in (1, 2, 3, 4, 8, 12, 16)]
    assert found == pytest.approx([0.0005, 0.0635, 0.270, 0.472, 0.801, 0.885, 0.920], abs=6e-4)


def test_metrics_do_not_depend_on_how_many_rows_are_looked_at_together(monkeypatch):
    (logits, labels), (theirs, _) = case(3), case(4)
    logits, theirs = logits.astype(np.float32), theirs.astype(np.float32)

    def every():
        return [
            calibration.top_k_correct(logits, labels, 2).sum(),
            *(
                f(logits, labels)
                for f in (
                    calibration.nll,
                    calibration.brier,
                    calibration.ece,
                    calibration.effective_smoothing,
                )
            ),
            calibration.fit_temperature(logits, labels),
            calibration.ece(logits, labels, temperature=3.0),
            fidelity.kl_to_teacher(logits, theirs),
        ]

    expected = every()
    assert expected[6] == pytest.approx(
        calibration.ece(logits.astype(np.float64) / 3, labels), abs=1e-12
    )
    monkeypatch.setattr(calibration, "AT_ONCE", 7 * logits.shape[1] + 3)
    assert every() == pytest.approx(expected, rel=1e-6)


def test_a_fitted_temperature_is_where_nothing_near_is_better():
    for seed in range(5):
        logits, labels = case(seed)
        logits = logits + 2 * np.eye(logits.shape[1])[labels]  # so that they say something
        fitted = calibration.fit_temperature(logits, labels)
        assert 0.1 < fitted < 10
        best = calibration.nll(logits / fitted, labels)
        assert all(
            calibration.nll(logits / (fitted * factor), labels) >= best
            for factor in (0.99, 0.999, 1.001, 1.01)
        )


def test_fidelity():
    logits, _ = case(0)
    other, _ = case(1)
    assert fidelity.agreement(logits, logits) == 1 and fidelity.kl_to_teacher(
        logits, logits + 5
    ) == pytest.approx(0, abs=1e-12)
    expected = np.mean(
        [
            stats.entropy(q, p)
            for q, p in zip(probabilities(other), probabilities(logits), strict=True)
        ]
    )
    assert fidelity.kl_to_teacher(logits, other) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_the_paired_test_is_students(pairs):
    """The quantiles of a printed table, and the tail of t as an incomplete beta function."""
    a, b = map(list, zip(*pairs, strict=True))
    got, differences = statistics.compare(a, b), np.array(b) - np.array(a)
    assert got.difference == pytest.approx(differences.mean(), abs=1e-12)
    if got.ci95 is None:
        assert got.p_value is None and np.ptp(differences) < 1e-9
    else:
        n = len(differences)
        error = math.sqrt(sum((d - differences.mean()) ** 2 for d in differences) / (n - 1) / n)
        half = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646}[
            n
        ] * error
        assert got.ci95 == pytest.approx(
            (differences.mean() - half, differences.mean() + half), abs=1e-4 * half + 1e-9
        )
        t = differences.mean() / error
        assert got.p_value == pytest.approx(
            betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t)), rel=1e-6, abs=1e-9
        )


def test_what_one_seed_or_no_spread_can_say():
    assert statistics.compare([0.5], [0.6]).ci95 is None
    assert statistics.compare([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p_value is None
    assert statistics.compare([0.0, 0.0], [0.0, 3.6e-230]).p_value is None  # its square is 0
    assert statistics.mean_interval([0.5]) == (0.5, 0.0, None)
    with pytest.raises(ValueError, match="one length"):
        statistics.compare([0.1], [0.1, 0.2])


def test_holms_adjustment():
    """Holm 1979's procedure by hand: 0.01·4, 0.02·3, max(0.03·2, 0.06), 0.04·1 → all raised to the running maximum."""
    assert statistics.holm([0.03, 0.01, None, 0.04, 0.02]) == pytest.approx(
        [0.06, 0.04, None, 0.06, 0.06]
    )
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0] and statistics.holm([None]) == [None]


@given(st.integers(0, 1000))
def test_the_plane_keeps_the_distances_of_the_templates(seed):
    templates = np.random.default_rng(seed).normal(size=(3, 20))
    basis = geometry.template_plane(templates)
    assert np.allclose(basis.T @ basis, np.eye(2), atol=1e-9)
    points = geometry.project(templates, templates, basis)
    assert points.sum(0) == pytest.approx(0, abs=1e-6)  # their mean is the origin
    for i in range(3):
        for j in range(3):
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(
                np.linalg.norm(templates[i] - templates[j]), abs=1e-9
            )
    off = templates + 3 * np.linalg.svd(basis.T)[2][-1]  # a step out of the plane is not seen
    assert np.allclose(geometry.project(off, templates, basis), points, atol=1e-6)


def test_templates_on_a_line_are_refused():
    with pytest.raises(ValueError, match="on a line"):
        geometry.template_plane(np.array([[0.0, 0, 0], [1, 1, 1], [2, 2, 2]]))
    with pytest.raises(ValueError, match="on a line"):
        geometry.template_plane(np.ones((3, 4)))


def test_within_between_is_its_double_loop():
    """Components of variance by hand: SS_W = (N - K) w and SS_B = (K - 1) w + (N - Σn²/N) b, in expectation."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    x = generator.normal(size=(60, 5)) + generator.normal(size=(3, 5))[labels]
    means = [np.mean([x[i] for i in range(60) if labels[i] == k], 0) for k in range(3)]
    within = sum(np.sum((x[i] - means[labels[i]]) ** 2) for i in range(60)) / 57
    between = (sum(np.sum((means[labels[i]] - x.mean(0)) ** 2) for i in range(60)) - 2 * within) / (
        60 - 1400 / 60
    )
    assert geometry.within_between(x, labels) == pytest.approx(within / between)
    assert geometry.within_between(np.array(means)[labels], labels) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="two examples of a class"):
        geometry.within_between(x[:2], np.array([0, 1]))


@pytest.mark.parametrize("each", [2, 10, 50])
def test_within_between_does_not_depend_on_how_many_are_looked_at(each):
    """Class means of variance 4 and examples of variance 1 about them: 0.25, of two examples a class as of fifty."""
    generator = np.random.default_rng(each)
    labels = np.arange(400 * each) % 400
    x = generator.normal(size=(len(labels), 8)) + 2 * generator.normal(size=(400, 8))[labels]
    assert geometry.within_between(x, labels) == pytest.approx(0.25, rel=0.1)


def test_the_most_confused_classes():
    p = np.full((6, 6), 0.01) + 0.9 * np.eye(6)
    p[1, 4] = p[4, 1] = 0.4
    p[4, 2] = 0.2
    p[0, 1] = p[1, 0] = p[0, 4] = p[4, 0] = 1e-4
    p /= p.sum(1, keepdims=True)
    shared = geometry.shared_probability(np.log(p), np.arange(6))
    assert geometry.most_confused(shared) == [1, 4, 2]
    assert geometry.confused_and_far(shared) == [1, 4, 0]
