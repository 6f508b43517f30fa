"""Calibration against scikit-learn, torchmetrics, plain Python and closed forms."""

import math

import numpy as np
import pytest
import torch
from helpers import oracles, oracles_analysis
from helpers.clusters import random_logits
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from distill.evaluation import calibration
from distill.evaluation.arrays import probabilities


@given(st.integers(0, 10_000))
def test_metrics_are_those_of_other_libraries(seed):
    logits, labels = random_logits(seed)
    p = np.array([oracles.softmax(row) for row in logits.tolist()])
    classes = range(7)
    assert calibration.nll(logits, labels) == pytest.approx(
        log_loss(labels, p, labels=classes), rel=1e-9
    )
    assert calibration.brier(logits, labels) == pytest.approx(
        brier_score_loss(labels, p, labels=classes, scale_by_half=False)
    )
    for k in (1, 3):
        assert calibration.top_k_correct(logits, labels, k).mean() == pytest.approx(
            top_k_accuracy_score(labels, p, k=k, labels=classes)
        )
    plain = oracles_analysis.ece(p.max(1).tolist(), (p.argmax(1) == labels).tolist())
    assert calibration.ece(logits, labels) == pytest.approx(plain, abs=1e-12)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), 7, n_bins=15)
    assert calibration.ece(logits, labels) == pytest.approx(theirs.item(), abs=1e-6)


def test_confidences_of_exactly_one_and_ties_are_binned_and_counted():
    logits = np.array([[800.0, 0, 0], [800.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0]])
    labels = np.array([0, 1, 0, 1])
    diagram = calibration.reliability(logits, labels)
    assert diagram.count[-1] == 2
    assert diagram.confidence[-1] == 1
    assert diagram.accuracy[-1] == 0.5
    # Of equal logits the first class ranks first, as in argmax.
    assert calibration.top_k_correct(logits, labels).tolist() == [True, False, True, False]
    assert calibration.ece(logits, labels) == pytest.approx(0.5 * 0.5 + 0.5 * (0.5 - 1 / 3))


def test_calibration_errors_are_those_of_plain_forms_on_a_thousand_cases():
    """Ties and confidences of exactly 1 are among them."""
    with_ones = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(1, 40))
        classes = int(generator.integers(2, 6))
        logits = generator.integers(0, 4, (count, classes)).astype(float)
        sharp = generator.random(count) < 0.3
        logits[sharp, 0] += 800
        if seed % 2:
            logits[~sharp] += generator.normal(size=logits[~sharp].shape)
        labels = generator.integers(0, classes, count)

        p = probabilities(logits)
        with_ones += (p == 1).any()
        confidence = p.max(1).tolist()
        correct = (logits.argmax(1) == labels).tolist()
        bin_of = [min(14, max(0, math.ceil(c * 15) - 1)) for c in confidence]
        expected = {
            calibration.ece: oracles_analysis.binned_gap(bin_of, correct, confidence),
            calibration.ece_equal_mass: oracles_analysis.equal_mass_ece(confidence, correct),
            calibration.ece_classwise: oracles_analysis.classwise_ece(p.tolist(), labels.tolist()),
        }
        for metric, value in expected.items():
            assert metric(logits, labels) == pytest.approx(value, abs=1e-10), (seed, metric)
    assert with_ones > 500


@given(st.integers(0, 1000), st.floats(0.3, 3))
def test_the_fitted_temperature_is_the_optimum_of_logistic_regression(seed, temperature):
    """For two classes, temperature scaling is logistic regression on the logit difference.

    scikit-learn's default solver sometimes stops at the optimum with a failed line search, which it
    reports as a ConvergenceWarning at this tolerance; Newton's method does not.
    """
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 2, 400)
    labels = (generator.random(400) < 1 / (1 + np.exp(-z / temperature))).astype(int)
    logits = np.stack([np.zeros(400), z], 1)
    regression = LogisticRegression(
        C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-10
    )
    slope = regression.fit(z[:, None], labels).coef_[0, 0]
    assert calibration.fit_temperature(logits, labels) == pytest.approx(1 / slope, rel=1e-3)


def test_a_fitted_temperature_is_better_than_all_near_it():
    for seed in range(5):
        logits, labels = random_logits(seed)
        logits = logits + 2 * np.eye(logits.shape[1])[labels]  # right more often than by chance
        fitted = calibration.fit_temperature(logits, labels)
        assert 0.1 < fitted < 10
        best = calibration.nll(logits / fitted, labels)
        for factor in (0.99, 0.999, 1.001, 1.01):
            assert calibration.nll(logits / (fitted * factor), labels) >= best


def test_a_temperature_without_an_optimum_stays_finite():
    labels = np.arange(50) % 10
    logits = 5 * np.eye(10)[labels]
    fitted = calibration.fit_temperature(logits, labels)
    assert 0.01 <= fitted <= 100
    assert calibration.nll(logits / fitted, labels) < 1e-12


def draw(generator, count, temperature, classes=5):
    """Draw logits, and labels from their probabilities at a temperature."""
    z = generator.normal(0, 1, (count, classes))
    rows = np.arange(count)
    z[rows, generator.integers(0, classes, count)] += generator.normal(4, 2.5, count).clip(0)
    p = probabilities(z, temperature)
    cumulative = p.cumsum(1) / p.sum(1, keepdims=True)
    return z, (generator.random((count, 1)) > cumulative).sum(1).clip(max=classes - 1)


@pytest.mark.parametrize(("temperature", "count"), [(1.0, 15), (1.0, 40), (1.0, 100), (1.3, 40)])
def test_a_temperature_of_few_images_rarely_harms(temperature, count):
    """Of networks that need hardly any, the plain fit makes the error of a third larger."""
    generator = np.random.default_rng(0)
    harmed = []
    for _ in range(60):
        logits, labels = draw(generator, count, temperature)
        others = draw(generator, 1000, temperature)
        before = calibration.ece(*others)
        for number, choose in enumerate(
            (calibration.choose_temperature, calibration.fit_temperature)
        ):
            after = calibration.ece(*others, temperature=choose(logits, labels))
            harmed.append((number, after > before + 0.003))
    share = [np.mean([worse for k, worse in harmed if k == number]) for number in (0, 1)]
    assert share[0] <= 0.1
    assert share[1] >= 0.1


@pytest.mark.parametrize("temperature", [0.6, 2.0, 4.0])
def test_a_temperature_that_is_needed_is_fitted(temperature):
    logits, labels = draw(np.random.default_rng(0), 400, temperature)
    chosen = calibration.choose_temperature(logits, labels)
    assert chosen == calibration.fit_temperature(logits, labels)
    assert chosen == pytest.approx(temperature, rel=0.2)


def test_without_errors_or_with_very_few_images_the_temperature_stays_one():
    labels = np.arange(50) % 10
    assert calibration.choose_temperature(5 * np.eye(10)[labels], labels) == 1
    assert calibration.choose_temperature(5 * np.eye(10)[:3], np.array([1, 1, 2])) == 1


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.6])
def test_effective_smoothing_is_the_smoothing_of_an_ideal_teacher(classes, smoothing):
    labels = np.arange(3 * classes) % classes
    q = np.full((len(labels), classes), smoothing / classes)
    q[np.arange(len(labels)), labels] += 1 - smoothing
    got = calibration.effective_smoothing(np.log(q) + 3, labels)
    assert got == pytest.approx(smoothing, rel=1e-9)


def test_effective_smoothing_by_temperature_is_that_of_a_logit_gap_of_ten():
    """γ = K/(K-1) (1 - p_y) with p_y = 1 / (1 + 9 exp(-10/T)) for K = 10."""
    logits = 10 * np.eye(10)
    temperatures = (1, 2, 3, 4, 8, 12, 16)
    got = [calibration.effective_smoothing(logits, np.arange(10), t) for t in temperatures]
    assert got == pytest.approx([0.0005, 0.0635, 0.270, 0.472, 0.801, 0.885, 0.920], abs=6e-4)
