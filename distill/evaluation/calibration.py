"""Accuracy, likelihood and calibration of predictions; logits are named logits.

All is computed in float64, some rows at a time, so that a million predictions take no more memory than a few.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.floating]
Labels = NDArray[np.int64]
BINS = 15  # the paper's count (section 3)
AT_ONCE = 2**20  # logits that are looked at together


class Reliability(NamedTuple):
    """A reliability diagram: per bin ``[bins]``, 0 where a bin is empty."""

    confidence: Array
    accuracy: Array
    count: Array


def parts(logits: Array) -> Iterator[slice]:
    """Slices of rows that are looked at together."""
    rows = max(1, AT_ONCE // logits.shape[1])
    return (slice(first, first + rows) for first in range(0, len(logits), rows))


def log_probabilities(logits: Array, temperature: float = 1.0) -> NDArray[np.float64]:
    """log p of logits ``[N, K]`` in float64."""
    return (
        torch.from_numpy(np.array(logits, np.float64) / temperature).log_softmax(1).numpy()
    )  # scipy's takes longer


def _of_class(values: Array, labels: Labels) -> Array:
    return np.take_along_axis(values, labels[:, None], 1)[:, 0]


def top_k_correct(logits: Array, labels: Labels, k: int = 1) -> NDArray[np.bool_]:
    """Whether the label is among the k largest logits, ``[N]``.

    Classes that tie with the label count before it if they come first, as argmax has it for k = 1.
    """
    found = np.empty(len(labels), bool)
    for part in parts(logits):
        z, own = logits[part], _of_class(logits[part], labels[part])[:, None]
        before = np.arange(logits.shape[1])[None] < labels[part][:, None]
        found[part] = ((z > own) | ((z == own) & before)).sum(1) < k
    return found


def nll(logits: Array, labels: Labels, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of logits divided by the temperature, in nats, without smoothing."""
    total = sum(
        _of_class(log_probabilities(logits[part], temperature), labels[part]).sum()
        for part in parts(logits)
    )
    return float(-total / len(labels))


def brier(logits: Array, labels: Labels) -> float:
    """Mean of ``Σ_k (p_k - y_k)²``, in [0, 2] (Brier 1950)."""
    total = 0.0
    for part in parts(logits):
        p = np.exp(log_probabilities(logits[part]))
        total += ((p**2).sum(1) - 2 * _of_class(p, labels[part]) + 1).sum()
    return float(total / len(labels))


def reliability(
    logits: Array, labels: Labels, bins: int = BINS, temperature: float = 1.0
) -> Reliability:
    """Confidence and accuracy of the predicted class in equal bins (lo, hi] (Guo et al. 2017, section 2).

    A confidence of exactly 1 falls into the last bin. Logits are divided by the temperature first.
    """
    correct, sums = top_k_correct(logits, labels), np.zeros((3, bins))
    for part in parts(logits):
        confidence = np.exp(log_probabilities(logits[part], temperature).max(1))
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        for row, weights in zip(sums, (confidence, correct[part], None), strict=True):
            row += np.bincount(place, weights, bins)
    filled = np.maximum(sums[2], 1)
    return Reliability(sums[0] / filled, sums[1] / filled, sums[2])


def ece(logits: Array, labels: Labels, bins: int = BINS, temperature: float = 1.0) -> float:
    """Expected calibration error ``Σ_b n_b/N |accuracy_b - confidence_b|``, in [0, 1]."""
    diagram = reliability(logits, labels, bins, temperature)
    return float(
        (diagram.count * np.abs(diagram.accuracy - diagram.confidence)).sum() / len(labels)
    )


def ece_equal_mass(logits: Array, labels: Labels, bins: int = BINS) -> float:
    """The same in bins of equally many examples (Nixon et al. 2019); examples of one confidence share a bin."""
    confidence = np.concatenate(
        [np.exp(log_probabilities(logits[part]).max(1)) for part in parts(logits)]
    )
    place = np.searchsorted(np.sort(confidence), confidence) * bins // len(labels)
    distance = np.bincount(place, top_k_correct(logits, labels) - confidence, bins)
    return float(np.abs(distance).sum() / len(labels))


def ece_classwise(logits: Array, labels: Labels, bins: int = BINS) -> float:
    """The mean over classes of the calibration error of that class's probability, in equal bins (Kull et al. 2019)."""
    classes = logits.shape[1]
    distance = np.zeros(classes * bins)
    for part in parts(logits):
        p = np.exp(log_probabilities(logits[part]))
        place = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1) + bins * np.arange(classes)
        distance -= np.bincount(place.ravel(), p.ravel(), classes * bins)
        distance += np.bincount(_of_class(place, labels[part]), minlength=classes * bins)
    return float(np.abs(distance).sum() / len(labels) / classes)


def fit_temperature(logits: Array, labels: Labels) -> float:
    """The temperature T in [0.01, 100] that minimises ``nll(logits / T)`` (Guo et al. 2017, section 4.2).

    To be fitted on held-out data, never on what it is judged by. The problem is convex in b = 1/T, with the
    derivative ``E[Σ_k p_k(b) z_k - z_y]``, whose zero is the optimum; where every held-out example is right there is
    none, and T = 0.01 is returned.
    """

    def slope(log_b: float) -> float:
        total = 0.0
        for part in parts(logits):
            z = logits[part].astype(np.float64)
            total += (
                (np.exp(log_probabilities(z, np.exp(-log_b))) * z).sum(1)
                - _of_class(z, labels[part])
            ).sum()
        return total / len(labels)

    low, high = np.log([0.01, 100.0])
    if slope(high) <= 0:
        return 0.01
    return float(np.exp(-brentq(slope, low, high, xtol=1e-7))) if slope(low) < 0 else 100.0


def effective_smoothing(logits: Array, labels: Labels, temperature: float = 1.0) -> float:
    """The smoothing index of a teacher, ``K/(K-1) E[1 - p_y(T)]`` (Müller et al. 2019, section 4).

    Equals the smoothing of a teacher that reached the optimum of smoothed cross-entropy over all classes.
    In [0, K/(K-1)]; meant for training examples.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)  # tensors on the CPU, too
    classes = logits.shape[1]
    total = sum(
        np.expm1(_of_class(log_probabilities(logits[part], temperature), labels[part])).sum()
        for part in parts(logits)
    )
    return float(-total / len(labels) * classes / (classes - 1))
