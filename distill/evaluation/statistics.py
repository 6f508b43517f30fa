"""Comparisons over seeds: paired, because runs of one seed share their weights, views and teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """A paired difference ``b - a`` over seeds.

    The interval and the p-value are None with one seed, and where all differences are equal: there is no
    spread to evaluate_network them by.
    """

    mean_a: float
    mean_b: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None


def _no_spread(x: np.ndarray, scale: float) -> bool:
    """Whether values differ by rounding only, or by so little that the square of it is no normal number."""
    return bool(np.ptp(x) <= max(1e-12 * scale, 1e-150))


def mean_interval(
    values: Sequence[float], level: float = 0.95
) -> tuple[float, float, tuple[float, float] | None]:
    """Mean, standard deviation (n - 1; 0 for one value) and Student's interval of the mean."""
    x = np.asarray(values, float)
    if len(x) < 2 or _no_spread(x, np.abs(x).max()):
        return float(x.mean()), 0.0, None
    low, high = stats.ttest_1samp(x, 0).confidence_interval(level)
    return float(x.mean()), float(x.std(ddof=1)), (float(low), float(high))


def compare(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """Student's paired t-test of two lists in the same order, of seeds or of images; `level` is the interval's.

    Over images, with whether each was classified rightly (or how often, over seeds), it is the interval of a difference
    of paired proportions: its width comes from the images on which the two differ, as in McNemar's test.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"paired lists must have one length of at least 1, got {len(a)} and {len(b)}"
        )
    differences = np.asarray(b, float) - np.asarray(a, float)
    scale = max(np.abs(a).max(), np.abs(b).max())
    if _no_spread(differences, scale):
        differences = np.full(len(a), differences.mean())
    mean, _, interval = mean_interval(list(differences), level)
    p = float(stats.ttest_1samp(differences, 0).pvalue) if interval else None
    return Paired(float(np.mean(a)), float(np.mean(b)), mean, interval, p)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment; what is None is not pluralize and stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = highest
    return adjusted
