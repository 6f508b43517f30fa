"""How closely a student follows its teacher (Stanton et al. 2021)."""

import numpy as np

from distill.analysis.calibration import Array, log_probabilities, parts


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
