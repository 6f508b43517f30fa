"""Accuracy, likelihood and calibration of predictions. float64 throughout; logits are named logits."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Array = NDArray[np.float64]
BINS = 15  # the paper's count (section 3)


class Reliability(NamedTuple):
    """A reliability diagram: per bin ``[bins]``, 0 where a bin is empty."""

    confidence: Array
    accuracy: Array
    count: Array


def top_k_correct(logits: Array, labels: NDArray[np.int64], k: int = 1) -> NDArray[np.bool_]:
    """Whether the label is among the k largest logits, ``[N]``.

    Classes that tie with the label count before it if they come first, as argmax has it for k = 1.
    """
    own = np.take_along_axis(logits, labels[:, None], 1)
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1) < k


def nll(logits: Array, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood, in nats, without smoothing."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return float(-np.take_along_axis(log_p, labels[:, None], 1).mean())


def brier(logits: Array, labels: NDArray[np.int64]) -> float:
    """Mean of ``Σ_k (p_k - y_k)²``, in [0, 2] (Brier 1950)."""
    p = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    own = np.take_along_axis(p, labels[:, None], 1)[:, 0]
    return float(((p**2).sum(1) - 2 * own + 1).mean())


def reliability(logits: Array, labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Confidence and accuracy of the predicted class in equal bins (lo, hi] (Guo et al. 2017, section 2).

    A confidence of exactly 1 falls into the last bin.
    """
    confidence = np.exp(log_softmax(logits.astype(np.float64), axis=1).max(1))
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(float)
    filled = np.maximum(count, 1)
    correct = top_k_correct(logits, labels)
    return Reliability(np.bincount(place, confidence, bins) / filled, np.bincount(place, correct, bins) / filled, count)


def ece(logits: Array, labels: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error ``Σ_b n_b/N |accuracy_b - confidence_b|``, in [0, 1]."""
    diagram = reliability(logits, labels, bins)
    return float((diagram.count * np.abs(diagram.accuracy - diagram.confidence)).sum() / len(labels))


def fit_temperature(logits: Array, labels: NDArray[np.int64]) -> float:
    """The temperature T in [0.01, 100] that minimises ``nll(logits / T)`` (Guo et al. 2017, section 4.2).

    To be fitted on held-out data, never on what it is judged by. The problem is convex in 1/T; where every
    held-out example is right there is no optimum, and some small temperature without loss is returned.
    """
    logits = logits.astype(np.float64)
    result = minimize_scalar(lambda t: nll(logits / np.exp(t), labels), bounds=np.log([0.01, 100.0]), method="bounded",
                             options={"xatol": 1e-6})
    return float(np.exp(result.x))


def gamma(logits: Array, labels: NDArray[np.int64], temperature: float = 1.0) -> float:
    """The smoothing index of a teacher, ``K/(K-1) E[1 - p_y(T)]`` (Müller et al. 2019, section 4).

    Equals the smoothing of a teacher that reached the optimum of smoothed cross-entropy over all classes.
    In [0, K/(K-1)]; meant for training examples.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)  # tensors on the CPU, too
    classes = logits.shape[1]
    log_p = log_softmax(logits / temperature, axis=1)
    own = np.take_along_axis(log_p, labels[:, None], 1)
    return float(-np.expm1(own).mean() * classes / (classes - 1))
