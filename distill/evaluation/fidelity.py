"""Measure fidelity to a teacher, stability of outputs, and diffusion of similar classes."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from distill.evaluation.arrays import (
    Array,
    Labels,
    log_probabilities,
    probabilities,
    row_chunks,
    sum_by_class,
)


def agreement(student: Array, teacher: Array) -> float:
    """Return the top-1 agreement of two networks with logits ``[N, K]``, in [0, 1].

    It is the fraction of examples for which both predict the same class (Stanton et al. 2021).
    """
    return float((student.argmax(1) == teacher.argmax(1)).mean())


def kl_to_teacher(student: Array, teacher: Array) -> float:
    """Return the mean ``KL(p_teacher ‖ p_student)`` of logits ``[N, K]`` at T = 1, in nats."""
    total = 0.0
    for rows in row_chunks(student):
        log_p = log_probabilities(np.maximum(teacher[rows], -1e30))
        log_q = log_probabilities(student[rows])
        total += (np.exp(log_p) * (log_p - log_q)).sum()
    return float(total / len(student))


def stability(logits: Array, labels: Labels) -> float:
    """Return ``1 - mean over classes c of mean ‖p - p̄_c‖²``, at most 1 (Shen et al. 2021).

    It is 1 if all examples of a class get the same probabilities, which then carry no information
    about the individual example. Classes without examples do not count.
    """
    classes = logits.shape[1]
    count = np.bincount(labels, minlength=classes)
    sums = np.zeros((classes, classes))  # Σ p, by class
    square_sums = np.zeros(classes)  # Σ ‖p‖², by class
    for rows in row_chunks(logits):
        p = probabilities(logits[rows])
        square_sums += np.bincount(labels[rows], (p**2).sum(1), classes)
        sum_by_class(p, labels[rows], sums)
    occurs = count > 0
    means = sums[occurs] / count[occurs][:, None]
    variance = square_sums[occurs] / count[occurs] - (means**2).sum(1)
    return float(1 - variance.clip(min=0).mean())


def diffusion(base: NDArray, moved: NDArray, near: NDArray[np.bool_]) -> float:
    """Return how much closer similar classes are than in a base student, relative to other classes.

    It is the mean of ``log(d'_kj / d_kj)`` over pairs of dissimilar classes, minus the mean over
    pairs of similar classes; d is the distance of two class means in `base`, d' in `moved`. This is
    our own definition of what Chandrasegaran et al. (2022) call systematic diffusion, not their
    index. It does not depend on scale; it is 0 without change and positive where similar classes
    come together.

    Args:
        base: class means ``[K, D]`` of the student at T = 1.
        moved: class means ``[K, D']`` of the same student at another temperature; NaN for a class
            without examples.
        near: ``[K, K]``, whether class j is similar to class k; see `near_classes`.

    Returns:
        NaN if there are no similar or no dissimilar pairs.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_change = np.log(cdist(moved, moved) / cdist(base, base))
    is_pair = np.isfinite(log_change) & ~np.eye(len(near), dtype=bool)
    dissimilar = log_change[is_pair & ~near]
    similar = log_change[is_pair & near]
    if not len(dissimilar) or not len(similar):
        return float("nan")
    return float(dissimilar.mean() - similar.mean())
