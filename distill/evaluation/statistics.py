"""Statistics over seeds.

Tests are paired, because runs of one seed share initial weights, views and teacher.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq


class Paired(NamedTuple):
    """A paired difference ``b - a`` over seeds.

    Attributes:
        mean_a: the mean of a.
        mean_b: the mean of b.
        difference: the mean of ``b - a``.
        ci95: the interval of the mean difference; None with one seed, and where all differences are
            equal, because there is no variation to estimate an error from.
        p_value: of Student's paired t-test, two-sided; None where `ci95` is.
    """

    mean_a: float
    mean_b: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None


def mean_interval(
    values: Sequence[float], level: float = 0.95
) -> tuple[float, float, tuple[float, float] | None]:
    """Compute the mean, the standard deviation and a confidence interval of the mean.

    Args:
        values: at least one.
        level: the coverage of the interval, in (0, 1).

    Returns:
        the mean, the standard deviation (n - 1 in the denominator), and Student's interval. For one
        value, and for values that are all equal, the deviation is 0 and the interval None.
    """
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2 or _is_constant(x, np.abs(x).max()):
        return mean, 0.0, None
    low, high = stats.ttest_1samp(x, 0).confidence_interval(level)
    return mean, float(x.std(ddof=1)), (float(low), float(high))


def compare(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """Compare two lists in the same order, of seeds or of images, by Student's paired t-test.

    Over images, with values of 1 for a correct and 0 for a wrong prediction (or the share of seeds
    that are correct), the interval is that of a difference of paired proportions. As in McNemar's
    test, its width comes from the images on which a and b differ.

    Args:
        a: one value per seed or image.
        b: the same for the other arm.
        level: the coverage of the interval, in (0, 1).

    Raises:
        ValueError: if the lists are empty or differ in length.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(
            f"paired lists must have one length of at least 1, got {len(a)} and {len(b)}"
        )
    differences = np.asarray(b, float) - np.asarray(a, float)
    scale = max(np.abs(a).max(), np.abs(b).max())
    if _is_constant(differences, scale):
        differences = np.full(len(a), differences.mean())
    mean, _, interval = mean_interval(list(differences), level)
    p_value = float(stats.ttest_1samp(differences, 0).pvalue) if interval else None
    return Paired(float(np.mean(a)), float(np.mean(b)), mean, interval, p_value)


def spread_of_interval(half_width: float, count: int) -> float:
    """Return the standard deviation of values whose 95% interval of the mean is given.

    Args:
        half_width: of Student's interval.
        count: number of values, at least 2.
    """
    return half_width * math.sqrt(count) / float(stats.t.ppf(0.975, count - 1))


def power(effect: float, count: int, significance: float = 0.05) -> float:
    """Return the probability that a paired t-test finds an effect.

    Args:
        effect: mean of the paired differences, in their standard deviations; positive.
        count: number of seeds, at least 2.
        significance: level of the two-sided test.
    """
    threshold = stats.t.ppf(1 - significance / 2, count - 1)
    # Under the effect, t has a noncentral distribution; the other tail is negligible.
    return float(stats.nct.sf(threshold, count - 1, effect * math.sqrt(count)))


def seeds_for_power(
    effect: float, significance: float = 0.05, wanted: float = 0.8, most: int = 1000
) -> int:
    """Return how many seeds a paired t-test needs to find an effect.

    Args:
        effect: mean of the paired differences, in their standard deviations; positive.
        significance: level of the two-sided test.
        wanted: probability that the test finds the effect.
        most: the largest number that is tried.

    Returns:
        the smallest number of at least 2; `most` + 1 if even `most` seeds are too few.
    """
    # The power grows with the number of seeds.
    return 2 + bisect_left(
        range(2, most + 1), wanted, key=lambda count: power(effect, count, significance)
    )


def effect_for_power(count: int, significance: float = 0.05, wanted: float = 0.8) -> float:
    """Return the effect that a paired t-test of `count` seeds finds with the wanted probability.

    Returns:
        the mean of the paired differences, in their standard deviations.
    """
    # Bracket it by powers of two; scipy's distribution is unreliable close to zero.
    most = 1.0
    while power(most, count, significance) < wanted:
        most *= 2
    least = most / 2
    while power(least, count, significance) >= wanted:
        least /= 2
    return float(brentq(lambda effect: power(effect, count, significance) - wanted, least, most))


def _is_constant(x: np.ndarray, scale: float) -> bool:
    """Return whether values differ by rounding only, or by so little that the square underflows."""
    return bool(np.ptp(x) <= max(1e-12 * scale, 1e-150))


def holm(p_values: list[float | None]) -> list[float | None]:
    """Adjust p-values for multiple comparisons by Holm's step-down procedure (Holm 1979).

    Entries that are None do not count as comparisons and stay None.
    """
    ordered = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(ordered):
        # A p-value is never adjusted to less than a smaller p-value is.
        highest = max(highest, min(1.0, p * (len(ordered) - rank)))
        adjusted[index] = highest
    return adjusted
