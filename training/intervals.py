"""Intervals that stay honest on few rows: of a share, of an AUROC, of a mean of figures. All at 95 %.

A percentile bootstrap of a figure on one positive, or on classes that separate, has no width. Those here have one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta

Interval = tuple[float, float]

_Z = 1.959963984540054
_NEAR_ONE = 1 - 1e-9


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact interval of a share (Clopper and Pearson 1934); without trials 0 to 1."""
    if not trials:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def wilson(share: float, trials: float) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), which takes a share of trials that is no whole number."""
    center = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return float(max(center - half, 0.0)), float(min(center + half, 1.0))


def auroc_interval(auroc: float, positives: int, negatives: int) -> Interval:
    """The score interval of an AUROC, which has a width at 0, at 1 and with a single positive.

    It is method 5 of Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic.
    Part 2", Statistics in Medicine 25 (2006): all θ whose distance to the AUROC is at most z · √V(θ), with Hanley and
    McNeil's variance V in which the counts of both classes are replaced by their mean.

    Args:
        auroc: 0 to 1.
        positives: rows of the class, 1 or more.
        negatives: rows of the other class, 1 or more.
    """
    pairs, others = positives * negatives, (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auroc - theta) ** 2 - _Z**2 * theta * (1 - theta) * spread / pairs

    low = 0.0 if auroc <= 0 else float(brentq(beyond, 0, min(auroc, _NEAR_ONE)))  # type: ignore[arg-type]
    high = 1.0 if auroc >= 1 else float(brentq(beyond, max(auroc, 1 - _NEAR_ONE), 1))  # type: ignore[arg-type]
    return low, high


def combined(values: Sequence[float], intervals: Sequence[Sequence[float]], weights: Sequence[float]) -> Interval:
    """The interval of a weighted sum of independent figures from their own ones (MOVER).

    Zou and Donner, "Construction of confidence limits about effect measures: a general approach", Statistics in
    Medicine 27 (2008): distances to the limits add as squares. Weights are 0 or more.
    """
    value, weight = np.array(values, float), np.array(weights, float)
    low, high = np.array(intervals, float).T
    total = float(weight @ value)
    down, up = (float(np.sqrt(np.square(weight * side).sum())) for side in (value - low, high - value))
    return total - down, total + up


def wider(*intervals: Sequence[float] | None) -> list[float] | None:
    """The lowest and the highest end of those that are there."""
    pairs = [pair for pair in intervals if pair is not None]
    return [min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)] if pairs else None
