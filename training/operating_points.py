"""Thresholds chosen by what they must achieve: `recall>=0.99`, `precision>=0.95`, `fpr<=0.001`, `f1`.

A threshold is chosen on the validation split so that fresh data keeps the promise on average, and then measured on
the test split. With n positives of which a threshold passes k, a fresh positive passes it with probability
k / (n + 1) on average, and the recall on fresh data has the Beta(k, n + 1 - k) distribution, whatever the scores'
own is; the same holds for negatives and the false positive rate. So `recall>=0.99` needs 99 positives to be
choosable at all, and the interval of what to expect is exact. The intervals of the test split are Clopper-Pearson's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import beta

from training.errors import StepError
from training.intervals import Interval, clopper_pearson

GRAMMAR = "recall>=X, precision>=X or fpr<=X with X between 0 and 1, or f1"

_BOUNDED = re.compile(r"(recall|precision)\s*>=\s*([0-9.eE+-]+)|(fpr)\s*<=\s*([0-9.eE+-]+)")
_REPLICATES = 2000


@dataclass(frozen=True)
class OperatingPoint:
    """The aim of a threshold."""

    metric: Literal["recall", "precision", "fpr", "f1"]
    bound: float | None  # None of f1, which is made as high as it goes
    text: str


@dataclass(frozen=True)
class Chosen:
    """A threshold and what fresh data may be expected to show."""

    threshold: float
    operating_point: str
    expected: float
    interval: Interval

    def report(self) -> dict[str, Any]:
        return {
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "expected": self.expected,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True)
class _Sweep:
    """Every threshold there is: the distinct scores, descending, with how many of each class pass it."""

    threshold: np.ndarray  # (T,)
    true_positives: np.ndarray  # (T,)
    false_positives: np.ndarray  # (T,)
    positives: int
    negatives: int


def parse_point(text: str) -> OperatingPoint:
    """One operating point of a recipe.

    Raises:
        StepError: it is none; the message names it and the grammar.
    """
    compact = text.strip()
    if compact == "f1":
        return OperatingPoint("f1", None, "f1")
    match = _BOUNDED.fullmatch(compact)
    try:
        bound = float(match[2] or match[4]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None or not 0 < bound < 1:
        raise StepError(f"operating point {text!r} is not understood; write {GRAMMAR}")
    return OperatingPoint(match[1] or match[3], bound, re.sub(r"\s", "", compact))  # type: ignore[arg-type]


def choose_threshold(
    point: OperatingPoint, labels: np.ndarray, scores: np.ndarray, prevalence: float | None = None
) -> Chosen:
    """The threshold of an operating point on data held out from training.

    Args:
        labels: (n,) 0 or 1, both of them present.
        scores: (n,) higher is more positive; a score at or above the threshold passes it.
        prevalence: of the positives where the head will be used, which precision and F1 depend on;
            by default their share in the data.

    Raises:
        StepError: no threshold achieves it on this data; the message says what is the best.
    """
    sweep = _sweep(labels, scores)
    if point.bound is None:
        return _highest_f1(sweep, prevalence)
    find = {"recall": _recall_at_least, "precision": _precision_at_least, "fpr": _fpr_at_most}
    return find[point.metric](sweep, point, prevalence)


def realised(
    labels: np.ndarray, scores: np.ndarray, threshold: float, prevalence: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """Measure a threshold on data on which it was not chosen: each figure with its 95 % interval.

    Recall and false positive rate have Clopper-Pearson's interval, precision the one that follows from
    Clopper-Pearson's for the share of true positives among those that pass, at the prevalence wanted, and F1 that
    of a parametric bootstrap. A figure without a sample, such as the precision when nothing passes, is None.
    """
    passed, positive = scores >= threshold, labels > 0
    true_positives, false_positives = int((passed & positive).sum()), int((passed & ~positive).sum())
    positives, negatives = int(positive.sum()), int((~positive).sum())
    share = _share(positives, negatives, prevalence)
    return {
        "n": len(labels),
        "prevalence": share,
        "recall": _with_interval(true_positives, positives),
        "precision": _precision(true_positives, false_positives, positives, negatives, share),
        "fpr": _with_interval(false_positives, negatives),
        "f1": _f1(true_positives, false_positives, positives, negatives, share, seed),
    }


def precision_at_prevalence(recall: Any, fpr: Any, prevalence: float) -> Any:
    """Share of positives among what passes, were the positives that share of all."""
    passing_positives = recall * prevalence
    return passing_positives / (passing_positives + fpr * (1 - prevalence))


def _sweep(labels: np.ndarray, scores: np.ndarray) -> _Sweep:
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], labels[order] > 0
    ends = np.flatnonzero(np.r_[np.diff(scores) != 0, True])  # of each run of equal scores
    hits = np.cumsum(positive)[ends]
    return _Sweep(scores[ends], hits, ends + 1 - hits, int(positive.sum()), int((~positive).sum()))


def _recall_at_least(sweep: _Sweep, point: OperatingPoint, _: float | None) -> Chosen:
    assert point.bound is not None
    expected = sweep.true_positives / (sweep.positives + 1)
    reached = np.flatnonzero(expected >= point.bound)
    if not len(reached):
        raise StepError(
            f"operating point {point.text}: {sweep.positives} positives held out can vouch for recall>="
            f"{_down(expected[-1])} at best, it takes {_needed(point.bound, 1 - point.bound)}; "
            "add labelled positives or lower the bound"
        )
    at = reached[0]
    passed = sweep.true_positives[at]
    return Chosen(
        float(sweep.threshold[at]), point.text, float(expected[at]), _beta(passed, sweep.positives + 1 - passed)
    )


def _fpr_at_most(sweep: _Sweep, point: OperatingPoint, _: float | None) -> Chosen:
    assert point.bound is not None
    passed = np.where(_of_a_negative(sweep), sweep.false_positives, sweep.false_positives + 1)
    expected = passed / (sweep.negatives + 1)
    reached = np.flatnonzero((expected <= point.bound) & (sweep.true_positives > 0))
    if not len(reached):
        usable = np.flatnonzero(sweep.true_positives > 0)
        raise StepError(
            f"operating point {point.text}: the lowest false positive rate that {sweep.negatives} negatives held out "
            f"can vouch for, with a positive still passing, is fpr<={_up(expected[usable].min())}; "
            f"it takes {_needed(1 - point.bound, point.bound)} negatives or more, and scores that part the classes: "
            "add labelled negatives or raise the bound"
        )
    at = reached[-1]
    spread = _beta(passed[at], sweep.negatives + 1 - passed[at])
    return Chosen(float(sweep.threshold[at]), point.text, float(expected[at]), spread)


def _precision_at_least(sweep: _Sweep, point: OperatingPoint, prevalence: float | None) -> Chosen:
    assert point.bound is not None
    share = _share(sweep.positives, sweep.negatives, prevalence)
    recall = sweep.true_positives / (sweep.positives + 1)
    fpr = (sweep.false_positives + 1) / (sweep.negatives + 1)  # one more, so that a lucky top score is no proof
    expected = precision_at_prevalence(recall, fpr, share)
    reached = np.flatnonzero(expected >= point.bound)
    if not len(reached):
        raise StepError(
            f"operating point {point.text}: the best precision that {sweep.positives} positives and {sweep.negatives} "
            f"negatives held out can vouch for, at a prevalence of {share:.3g}, is {_down(expected.max())}; "
            "add labelled images, improve the head or lower the bound"
        )
    at = reached[-1]
    counts = int(sweep.true_positives[at]), int(sweep.false_positives[at]), sweep.positives, sweep.negatives
    figure = _precision(*counts, share)
    assert figure is not None
    return Chosen(float(sweep.threshold[at]), point.text, float(expected[at]), tuple(figure["interval_95"]))


def _highest_f1(sweep: _Sweep, prevalence: float | None) -> Chosen:
    share = _share(sweep.positives, sweep.negatives, prevalence)
    values = _f1_of(sweep.true_positives / sweep.positives, sweep.false_positives / sweep.negatives, share)
    at = int(np.argmax(values))
    counts = int(sweep.true_positives[at]), int(sweep.false_positives[at]), sweep.positives, sweep.negatives
    figure = _f1(*counts, share, seed=0)
    assert figure is not None
    return Chosen(float(sweep.threshold[at]), "f1", figure["value"], tuple(figure["interval_95"]))


def _of_a_negative(sweep: _Sweep) -> np.ndarray:
    """(T,) whether a negative has that very score; between two negatives only the lower one bounds what passes."""
    return np.diff(sweep.false_positives, prepend=0) > 0


def _share(positives: int, negatives: int, prevalence: float | None) -> float:
    return positives / (positives + negatives) if prevalence is None else prevalence


def _with_interval(successes: int, trials: int) -> dict[str, Any] | None:
    if not trials:
        return None
    return {"value": successes / trials, "interval_95": list(clopper_pearson(successes, trials))}


def _precision(
    true_positives: int, false_positives: int, positives: int, negatives: int, share: float
) -> dict[str, Any] | None:
    passed = true_positives + false_positives
    if not passed or not positives or not negatives:
        return None
    # Odds of a positive among what passes, from the data's prevalence to the wanted one.
    factor = (share / (1 - share)) * (negatives / positives) if 0 < share < 1 else 1.0
    sample = [true_positives / passed, *clopper_pearson(true_positives, passed)]
    value, low, high = (part * factor / (part * factor + 1 - part) for part in sample)
    return {"value": value, "interval_95": [low, high]}


def _f1(
    true_positives: int, false_positives: int, positives: int, negatives: int, share: float, seed: int
) -> dict[str, Any] | None:
    if not positives or not negatives:
        return None
    rng = np.random.default_rng(seed)
    recall, fpr = true_positives / positives, false_positives / negatives
    drawn = _f1_of(
        rng.binomial(positives, recall, _REPLICATES) / positives,
        rng.binomial(negatives, fpr, _REPLICATES) / negatives,
        share,
    )
    return {"value": float(_f1_of(recall, fpr, share)), "interval_95": np.quantile(drawn, [0.025, 0.975]).tolist()}


def _f1_of(recall: Any, fpr: Any, share: float) -> Any:
    return 2 * recall * share / (recall * share + fpr * (1 - share) + share)


def _beta(a: Any, b: Any) -> Interval:
    low, high = beta.ppf([0.025, 0.975], a, b)
    return float(low), float(high)


def _needed(kept: float, lost: float) -> int:
    """Return how many of a class a bound needs: n / (n + 1) must reach `kept`."""
    return int(np.ceil(kept / lost - 1e-9))


def _down(value: float) -> str:
    """Rounded so that the bound named can be reached."""
    return f"{np.floor(value * 1e4) / 1e4:.4f}".rstrip("0")


def _up(value: float) -> str:
    return f"{np.ceil(value * 1e4) / 1e4:.4f}".rstrip("0")
