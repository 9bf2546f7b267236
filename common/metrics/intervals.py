"""Confidence intervals of proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(correct: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a proportion, both in [0, 1].

    Args:
        correct: number of successes, 0 to `count`.
        count: number of trials; without any, the interval is all of [0, 1].
        z: quantile of the normal distribution (default: a 95 % interval).

    Examples:
        >>> [round(value, 4) for value in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    if count <= 0:
        return 0.0, 1.0
    if not 0 <= correct <= count:
        raise ValueError(f"{correct} of {count} is not a proportion")
    share, square = correct / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    return low, 1.0 if correct == count else min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test on paired results.

    Args:
        only_first: items that only the first of two readers gets right.
        only_second: items that only the second gets right. Items on which they agree say nothing.

    Examples:
        >>> round(mcnemar(2, 10), 4)
        0.0386
    """
    from scipy.stats import binomtest

    both = only_first + only_second
    return float(binomtest(only_first, both, 0.5).pvalue) if both else 1.0


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of `first - second` over the same items and its 95 % interval (low, high).

    The interval is that of a bootstrap over the items (2,000 draws, percentiles); the draws are always the same.

    Examples:
        >>> [round(value, 2) for value in paired_difference([1, 1, 0, 1] * 50, [1, 0, 0, 1] * 50)]
        [0.25, 0.19, 0.31]
    """
    from scipy.stats import bootstrap

    shifts = np.subtract(first, second, dtype=np.float64)
    if len(shifts) < 2 or not np.ptp(shifts):  # nothing varies: the bootstrap has nothing to draw
        return float(shifts.mean()), float(shifts.mean()), float(shifts.mean())
    drawn = bootstrap((shifts,), np.mean, n_resamples=2000, method="percentile", random_state=0).confidence_interval
    return float(shifts.mean()), float(drawn.low), float(drawn.high)
