"""Accuracy, likelihood and calibration of logits ``[N, K]`` against labels ``[N]``."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from distill.evaluation.arrays import (
    Array,
    Labels,
    log_probabilities,
    probabilities,
    row_chunks,
    select_class,
)

BINS = 15  # as in Müller et al. 2019, section 3
LOWEST_TEMPERATURE = 0.01
HIGHEST_TEMPERATURE = 100.0
FOLDS = 5  # of the cross-validation that decides on a calibration temperature


class Reliability(NamedTuple):
    """A reliability diagram: one value per bin, ``[bins]``; all are 0 where a bin is empty.

    Attributes:
        confidence: the mean confidence of the examples in the bin, in [0, 1].
        accuracy: the fraction of them that is classified correctly, in [0, 1].
        count: the number of examples in the bin.
    """

    confidence: Array
    accuracy: Array
    count: Array


def top_k_correct(logits: Array, labels: Labels, k: int = 1) -> NDArray[np.bool_]:
    """Return whether the label is among the k largest logits, ``[N]``.

    If classes have equal logits, the one with the lower index ranks first, as in argmax.
    """
    correct = np.empty(len(labels), bool)
    for rows in row_chunks(logits):
        z = logits[rows]
        own = select_class(z, labels[rows])[:, None]
        has_lower_index = np.arange(z.shape[1])[None] < labels[rows][:, None]
        ranks_before = (z > own) | ((z == own) & has_lower_index)
        correct[rows] = ranks_before.sum(1) < k
    return correct


def nll(logits: Array, labels: Labels, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood ``-log softmax(z / T)_y``, in nats."""
    total = sum(
        select_class(log_probabilities(logits[rows], temperature), labels[rows]).sum()
        for rows in row_chunks(logits)
    )
    return float(-total / len(labels))


def brier(logits: Array, labels: Labels) -> float:
    """Return the Brier score, the mean of ``Σ_k (p_k - 1[k = y])²``, in [0, 2] (Brier 1950)."""
    total = 0.0
    for rows in row_chunks(logits):
        p = probabilities(logits[rows])
        total += ((p**2).sum(1) - 2 * select_class(p, labels[rows]) + 1).sum()
    return float(total / len(labels))


def reliability(
    logits: Array, labels: Labels, bins: int = BINS, temperature: float = 1.0
) -> Reliability:
    """Compute a reliability diagram of the predicted class (Guo et al. 2017, section 2).

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``.
        bins: the number of bins of equal width, each an interval (low, high].
        temperature: divides the logits.
    """
    correct = top_k_correct(logits, labels)
    confidence_sum = np.zeros(bins)
    correct_sum = np.zeros(bins)
    count = np.zeros(bins)
    for rows in row_chunks(logits):
        confidence = np.exp(log_probabilities(logits[rows], temperature).max(1))
        bin_index = _bin_index(confidence, bins)
        confidence_sum += np.bincount(bin_index, confidence, bins)
        correct_sum += np.bincount(bin_index, correct[rows], bins)
        count += np.bincount(bin_index, minlength=bins)
    divisor = np.maximum(count, 1)
    return Reliability(confidence_sum / divisor, correct_sum / divisor, count)


def _bin_index(probability: Array, bins: int) -> NDArray[np.int64]:
    """Return the index of each probability's bin (low, high]; 0 is in the first bin."""
    return np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)


def ece(logits: Array, labels: Labels, bins: int = BINS, temperature: float = 1.0) -> float:
    """Return the expected calibration error ``Σ_b n_b/N |accuracy_b - confidence_b|``, in [0, 1].

    The arguments are those of `reliability`.
    """
    diagram = reliability(logits, labels, bins, temperature)
    gaps = np.abs(diagram.accuracy - diagram.confidence)
    return float((diagram.count * gaps).sum() / len(labels))


def ece_equal_mass(logits: Array, labels: Labels, bins: int = BINS) -> float:
    """Return the expected calibration error in bins of equally many examples (Nixon et al. 2019).

    Examples of equal confidence share a bin.
    """
    confidence = np.concatenate(
        [np.exp(log_probabilities(logits[rows]).max(1)) for rows in row_chunks(logits)]
    )
    rank = np.searchsorted(np.sort(confidence), confidence)
    bin_index = rank * bins // len(labels)
    gaps = np.bincount(bin_index, top_k_correct(logits, labels) - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def ece_classwise(logits: Array, labels: Labels, bins: int = BINS) -> float:
    """Return the mean over classes of the calibration error of that class's probability.

    This is the classwise ECE of Kull et al. 2019. For class k it is ``Σ_b n_b/N |mean 1[y = k] -
    mean p_k|`` over bins (low, high] of p_k.
    """
    classes = logits.shape[1]
    first_bin = bins * np.arange(classes)  # each class has bins of its own
    gaps = np.zeros(classes * bins)
    for rows in row_chunks(logits):
        p = probabilities(logits[rows])
        bin_index = _bin_index(p, bins) + first_bin
        gaps -= np.bincount(bin_index.ravel(), p.ravel(), classes * bins)
        gaps += np.bincount(select_class(bin_index, labels[rows]), minlength=classes * bins)
    return float(np.abs(gaps).sum() / len(labels) / classes)


def fit_temperature(logits: Array, labels: Labels) -> float:
    """Return the temperature T in [0.01, 100] that minimises ``nll(logits / T)``.

    This is temperature scaling (Guo et al. 2017, section 4.2). Fit it on held-out data, never on
    the data that it is evaluated on. The problem is convex in b = 1/T. Its derivative is
    ``E[Σ_k p_k(b) z_k - z_y]``, and the optimum is where that is zero. If every example is
    classified correctly, a smaller T is always better and there is no optimum; the result is then
    T = 0.01.
    """

    def slope(log_b: float) -> float:
        total = 0.0
        temperature = np.exp(-log_b)
        for rows in row_chunks(logits):
            z = logits[rows].astype(np.float64)
            expected_logit = (probabilities(z, temperature) * z).sum(1)
            total += (expected_logit - select_class(z, labels[rows])).sum()
        return total / len(labels)

    low, high = np.log([1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE])
    if slope(high) <= 0:
        return LOWEST_TEMPERATURE
    if slope(low) < 0:
        return float(np.exp(-brentq(slope, low, high, xtol=1e-7)))
    return HIGHEST_TEMPERATURE


def choose_temperature(logits: Array, labels: Labels) -> float:
    """Return a calibration temperature, or 1 if no other one is reliably better.

    The temperature that is fitted to a few images often calibrates other images worse than T = 1.
    So it is taken only if it is better by more than its standard error on images that it was not
    fitted to: the likelihood of each image under the fit to the other folds of a cross-validation,
    against its likelihood at T = 1. If all images are classified correctly, the likelihood has no
    optimum, and T = 1 is kept, too.

    Args:
        logits: ``[N, K]`` of held-out images.
        labels: ``[N]``.
    """
    count = len(labels)
    if count < FOLDS or top_k_correct(logits, labels).all():
        return 1.0
    # Neighbours in a data set may be alike, so folds are drawn at random, always the same.
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    gain = np.empty(count)
    for number in range(FOLDS):
        held_out = fold == number
        fitted = fit_temperature(logits[~held_out], labels[~held_out])
        z, y = logits[held_out], labels[held_out]
        at_fit = select_class(log_probabilities(z, fitted), y)
        gain[held_out] = at_fit - select_class(log_probabilities(z, 1.0), y)
    standard_error = gain.std(ddof=1) / np.sqrt(count)
    is_better = gain.mean() > standard_error
    return fit_temperature(logits, labels) if is_better else 1.0


def effective_smoothing(logits: Array, labels: Labels, temperature: float = 1.0) -> float:
    """Return the effective smoothing γ of a teacher, ``K/(K-1) E[1 - p_y(T)]``, in [0, K/(K-1)].

    This is the smoothing index of Müller et al. 2019, section 4. For a teacher at the optimum of
    cross-entropy with labels smoothed over all classes, γ is exactly the label smoothing.

    Args:
        logits: the teacher's ``[N, K]``, usually of training examples; a tensor on the CPU is fine.
        labels: ``[N]``; a tensor on the CPU is fine.
        temperature: divides the logits.
    """
    logits = np.asarray(logits)
    labels = np.asarray(labels)
    classes = logits.shape[1]
    # expm1(log p) is p - 1 without rounding p to 1.
    total = sum(
        np.expm1(select_class(log_probabilities(logits[rows], temperature), labels[rows])).sum()
        for rows in row_chunks(logits)
    )
    return float(-total / len(labels) * classes / (classes - 1))
