"""How closely a student follows its teacher (Stanton et al. 2021)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax


def agreement(student: NDArray, teacher: NDArray) -> float:
    """Fraction of examples on which both ``[N, K]`` logits name the same class, in [0, 1]."""
    return float((student.argmax(1) == teacher.argmax(1)).mean())


def kl_to_teacher(student: NDArray, teacher: NDArray) -> float:
    """Mean ``KL(p_teacher ‖ p_student)`` of ``[N, K]`` logits at temperature 1, in nats."""
    log_p = log_softmax(teacher.astype(np.float64), axis=1)
    log_q = log_softmax(student.astype(np.float64), axis=1)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
