"""Slow and obvious forms of what the package computes: loops, float64, straight from the formulas."""

import math

import numpy as np


def softmax(logits, temperature=1.0):
    scaled = [z / temperature for z in logits]
    highest = max(scaled)
    powers = [math.exp(z - highest) for z in scaled]
    return [p / sum(powers) for p in powers]


def log_softmax(logits, temperature=1.0):
    scaled = [z / temperature for z in logits]
    highest = max(scaled)
    total = highest + math.log(sum(math.exp(z - highest) for z in scaled))
    return [z - total for z in scaled]


def cross_entropy(logits, label, smoothing=0.0, over="all"):
    """-Σ q log p with q written out class by class."""
    classes = len(logits)
    if over == "all":
        q = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
    else:
        q = [1 - smoothing if k == label else smoothing / (classes - 1) for k in range(classes)]
    return -sum(qk * lp for qk, lp in zip(q, log_softmax(logits), strict=True))


def kd(student, teacher, temperature, student_temperature=None):
    """S² Σ q (log q - log p)."""
    own = student_temperature or temperature
    log_q, log_p = log_softmax(teacher, temperature), log_softmax(student, own)
    return own**2 * sum(math.exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def logit_mse(student, teacher, over_classes="sum"):
    total = sum((a - b) ** 2 for a, b in zip(student, teacher, strict=True)) / 2
    return total / len(student) if over_classes == "mean" else total


def ece(confidence, correct, bins=15):
    """Σ n_b/N |accuracy - confidence| over bins (lo, hi], example by example."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total
