"""How closely a student follows its teacher (Stanton et al. 2021), and what smoothing a teacher does to both."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from distill.evaluation.calibration import Array, Labels, log_probabilities, parts


def agreement(student: Array, teacher: Array) -> float:
    """Fraction of examples on which both ``[N, K]`` logits name the same class, in [0, 1]."""
    return float((student.argmax(1) == teacher.argmax(1)).mean())


def kl_to_teacher(student: Array, teacher: Array) -> float:
    """Mean ``KL(p_teacher ‖ p_student)`` of ``[N, K]`` logits at temperature 1, in nats."""
    total = 0.0
    for part in parts(student):
        log_p, log_q = log_probabilities(teacher[part]), log_probabilities(student[part])
        total += (np.exp(log_p) * (log_p - log_q)).sum()
    return float(total / len(student))


def stability(logits: Array, labels: Labels) -> float:
    """``1 - mean over classes of mean ‖p - p̄_c‖²``, at most 1 (Shen et al. 2021): 1 where all examples of a class
    get one answer, so that nothing in it tells them apart. Classes that do not occur do not count.
    """
    classes = logits.shape[1]
    count = np.bincount(labels, minlength=classes)
    means, squares = np.zeros((classes, classes)), np.zeros(classes)
    for part in parts(logits):
        p, own = np.exp(log_probabilities(logits[part])), labels[part]
        squares += np.bincount(own, (p**2).sum(1), classes)
        for k in np.unique(own):
            means[k] += p[own == k].sum(0)
    there = count > 0
    means = means[there] / count[there][:, None]
    return float(1 - (squares[there] / count[there] - (means**2).sum(1)).clip(min=0).mean())


def diffusion(base: NDArray, moved: NDArray, near: NDArray[np.bool_]) -> float:
    """How much nearer similar classes have come than others, from one student's features to another's.

    This project's own definition of what Chandrasegaran et al. (2022) call diffusion, not their index: the mean of
    ``log(d'_kj / d_kj)`` over pairs of other classes, less that over pairs of similar ones, d the distance of two class
    means before and d' after. Scale cancels; 0 without change, positive where similar classes come together.

    Args:
        base: class means ``[K, D]`` of the student at T = 1.
        moved: class means ``[K, D']`` of the same student at another temperature; NaN for a class without examples.
        near: ``[K, K]``, which classes j are similar to k; see `near_classes`.

    Returns:
        NaN if there is no pair of either kind.
    """
    distances = [cdist(means, means) for means in (base, moved)]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(distances[1] / distances[0])
    pairs = np.isfinite(change) & ~np.eye(len(near), dtype=bool)
    far, close = change[pairs & ~near], change[pairs & near]
    return float(far.mean() - close.mean()) if len(far) and len(close) else float("nan")
