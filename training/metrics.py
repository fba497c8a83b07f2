"""How good scores are: the usual figures, and how sure one can be of them.

Each figure is computed from counts: how many positives and negatives have each distinct score. The 95 % interval
of a figure is its percentile bootstrap: rows are drawn with replacement within each class, so that neither is ever
empty, and the figure is computed for all the replicates at once, as another row of counts. Of more than
_MOST_GROUPS distinct scores, neighbours share a group in the bootstrap (never in the figure itself), which bounds
its cost whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from training.calibrate import ECE_BINS, ece_bins

REPLICATES = 1000

_MOST_GROUPS = 1024
_FLOATS_PER_CHUNK = 4_000_000
_ROUNDING = 1e-12
_LEVEL = np.array([0.025, 0.975])


@dataclass(frozen=True)
class Counts:
    """Rows of each class at each score, scores ascending; R is 1, or the number of replicates."""

    score: np.ndarray  # (G,)
    positives: np.ndarray  # (R, G)
    negatives: np.ndarray  # (R, G)


Figure = Callable[[Counts], np.ndarray]
"""Counts → (R,); NaN where there is none, such as the precision when nothing passes."""


def binary_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    seed: int,
    *,
    probabilities: bool = True,
    recall_at: float = 0.99,
    precision_at: float = 0.95,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """Figures for one label on data that holds both classes, each with `<figure>_95_interval`.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher is more positive.
        threshold: a score at or above it counts as positive.
        seed: of the bootstrap.
        probabilities: whether the scores lie in 0…1, so that ECE and Brier score mean something.
        recall_at: the recall whose false positive rate is reported.
        precision_at: the precision whose recall is reported.
        prevalence: rows are weighed as if the positives were this share of all.
    """
    exact = counts_of(labels, scores)
    replicates = resampled(exact if len(exact.score) <= _MOST_GROUPS else _grouped(exact), seed)
    if prevalence is not None:
        exact, replicates = at_prevalence(exact, prevalence), at_prevalence(replicates, prevalence)
    figures: dict[str, Figure] = {
        "auroc": auroc,
        "average_precision": average_precision,
        "accuracy": lambda counts: _at(counts, threshold)["accuracy"],
        "recall": lambda counts: _at(counts, threshold)["recall"],
        "precision": lambda counts: _at(counts, threshold)["precision"],
        "fpr": lambda counts: _at(counts, threshold)["fpr"],
        f"recall_at_precision_{precision_at:g}": lambda counts: recall_at_precision(counts, precision_at),
        f"fpr_at_recall_{recall_at:g}": lambda counts: fpr_at_recall(counts, recall_at),
    }
    if probabilities:
        figures |= {"ece": ece_of, "brier": brier_of}
    found: dict[str, Any] = {"n": len(labels), "positives": int((labels > 0).sum()), "threshold": threshold}
    for name, figure in figures.items():
        [value] = figure(exact)
        found[name] = _number(value)
        found[f"{name}_95_interval"] = interval(figure(replicates), value if name == "ece" else None)
    return found | {"confusion": confusion(labels, scores >= threshold)}


def task_metrics(
    task: str,
    labels: list[str],
    targets: np.ndarray,
    scores: np.ndarray,
    thresholds: list[float],
    *,
    seed: int,
    probabilities: bool,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """The figures of a head: of a binary one flat, of several labels each label's beside their mean.

    The interval of a mean over labels takes the labels' bootstraps as independent of each other.

    Args:
        labels: names of the L columns.
        targets: (n, L) 0 or 1, of a regression its value.
        scores: (n, L).
        thresholds: of each label; of a regression none.
        probabilities: whether the scores lie in 0…1.
    """
    if task == "regression":
        return regression_metrics(targets[:, 0], scores[:, 0], seed)
    columns = {
        name: _label_metrics(targets[:, at], scores[:, at], thresholds[at], seed, probabilities, prevalence)
        for at, name in enumerate(labels)
    }
    if task == "binary":
        return columns[labels[0]]
    found: dict[str, Any] = {"n": len(targets), "macro": _macro(list(columns.values())), "labels": columns}
    hits = targets.argmax(axis=1) == scores.argmax(axis=1)
    if task == "multilabel":
        hits = ((scores >= np.array(thresholds)) == (targets > 0)).all(axis=1)
    found["accuracy"], found["accuracy_95_interval"] = mean_metric(hits.astype(float), seed)
    if task == "multiclass":
        matrix = np.zeros((len(labels), len(labels)), int)
        np.add.at(matrix, (targets.argmax(axis=1), scores.argmax(axis=1)), 1)
        found["confusion"] = matrix.tolist()  # row: the true class, column: the class of the highest score
    return found


def _label_metrics(
    targets: np.ndarray, scores: np.ndarray, threshold: float, seed: int, probabilities: bool, prevalence: float | None
) -> dict[str, Any]:
    positives = int((targets > 0).sum())
    if positives in (0, len(targets)):
        side = "no" if positives == 0 else "only"
        return {"n": len(targets), "positives": positives, "reason": f"{side} positives, so nothing to tell apart"}
    return binary_metrics(targets, scores, threshold, seed, probabilities=probabilities, prevalence=prevalence)


def _macro(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the labels that have the figure."""
    found: dict[str, Any] = {}
    for name in ("auroc", "average_precision", "ece", "brier"):
        known = [column for column in columns if column.get(name) is not None]
        if known:
            found[name] = float(np.mean([column[name] for column in known]))
            found[f"{name}_95_interval"] = _mean_interval([column[f"{name}_95_interval"] for column in known])
    return found


def _mean_interval(intervals: list[list[float] | None]) -> list[float] | None:
    """Of the mean of independent figures: half-widths add as squares."""
    if None in intervals:
        return None
    halves = np.array([(pair[1] - pair[0]) / 2 for pair in intervals if pair])
    centers = np.mean([np.mean(pair) for pair in intervals if pair])
    half = float(np.sqrt(np.square(halves).sum()) / len(halves))
    return [float(centers) - half, float(centers) + half]


def confusion(labels: np.ndarray, passed: np.ndarray) -> dict[str, int]:
    positive = labels > 0
    return {
        "true_positive": int((passed & positive).sum()),
        "false_positive": int((passed & ~positive).sum()),
        "false_negative": int((~passed & positive).sum()),
        "true_negative": int((~passed & ~positive).sum()),
    }


def regression_metrics(values: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, Any]:
    """MSE, Pearson and Spearman, (n,) and (n,), each with its interval.

    The bootstrap of Spearman's keeps the ranks of the whole sample.
    """
    found: dict[str, Any] = {"n": len(values)}
    weights = _row_weights(len(values), seed)
    squares = np.square(values - scores)
    _add(found, "mse", float(squares.mean()), np.concatenate([chunk @ squares for chunk in weights()]) / len(values))
    for name, x, y in (("pearson", values, scores), ("spearman", rankdata(values), rankdata(scores))):
        replicates = np.concatenate([_weighted_pearson(chunk, x, y) for chunk in weights()])
        [value] = _weighted_pearson(np.ones((1, len(x))), x, y)
        _add(found, name, _number(value), replicates)
    return found


def mean_metric(hits: np.ndarray, seed: int) -> tuple[float, list[float] | None]:
    """The mean of (n,) values, such as whether each row was classified well, with its interval."""
    weights = _row_weights(len(hits), seed)
    return float(hits.mean()), interval(np.concatenate([chunk @ hits for chunk in weights()]) / len(hits))


def counts_of(labels: np.ndarray, scores: np.ndarray) -> Counts:
    """Exact: one group per distinct score."""
    distinct, group = np.unique(scores, return_inverse=True)
    positives = np.bincount(group, labels > 0, len(distinct))[None]
    return Counts(distinct, positives, np.bincount(group, minlength=len(distinct))[None] - positives)


def resampled(counts: Counts, seed: int, replicates: int = REPLICATES) -> Counts:
    """Bootstrap replicates of the counts: the rows of each class drawn anew."""
    rng = np.random.default_rng(seed)
    drawn = []
    for [row] in (counts.positives, counts.negatives):
        total = row.sum()
        drawn.append(rng.multinomial(int(total), row / total, replicates).astype(np.float64))
    return Counts(counts.score, *drawn)


def at_prevalence(counts: Counts, prevalence: float) -> Counts:
    """The positives weighed so that they are this share of all."""
    positives = counts.positives.sum(axis=1, keepdims=True)
    negatives = counts.negatives.sum(axis=1, keepdims=True)
    weight = prevalence / (1 - prevalence) * negatives / positives
    return Counts(counts.score, counts.positives * weight, counts.negatives)


def auroc(counts: Counts) -> np.ndarray:
    negatives_below = np.cumsum(counts.negatives, axis=1) - counts.negatives
    wins = (counts.positives * (negatives_below + counts.negatives / 2)).sum(axis=1)
    return wins / (counts.positives.sum(axis=1) * counts.negatives.sum(axis=1))


def average_precision(counts: Counts) -> np.ndarray:
    """Precision at each threshold, weighted by the recall it adds."""
    true, false = _passing(counts)
    precision = true / np.maximum(true + false, np.finfo(float).tiny)
    return (precision * counts.positives).sum(axis=1) / counts.positives.sum(axis=1)


def recall_at_precision(counts: Counts, bound: float) -> np.ndarray:
    """The highest recall of a threshold with at least that precision; 0 if there is none."""
    true, false = _passing(counts)
    kept = true >= bound * (true + false) * (1 - _ROUNDING)
    return np.where(kept, true, 0).max(axis=1) / counts.positives.sum(axis=1)


def fpr_at_recall(counts: Counts, bound: float) -> np.ndarray:
    """The lowest false positive rate of a threshold with at least that recall."""
    true, false = _passing(counts)
    kept = true >= bound * counts.positives.sum(axis=1, keepdims=True) * (1 - _ROUNDING)
    return np.where(kept, false, np.inf).min(axis=1) / counts.negatives.sum(axis=1)


def ece_of(counts: Counts) -> np.ndarray:
    """Expected calibration error, see training.calibrate.ece."""
    gaps = counts.positives * (counts.score - 1) + counts.negatives * counts.score
    bins = ece_bins(counts.score)[:, None] == np.arange(ECE_BINS)  # (G, bins)
    return np.abs(gaps @ bins).sum(axis=1) / _rows(counts)


def brier_of(counts: Counts) -> np.ndarray:
    errors = counts.positives @ np.square(counts.score - 1) + counts.negatives @ np.square(counts.score)
    return errors / _rows(counts)


def interval(replicates: np.ndarray, biased: float | None = None) -> list[float] | None:
    """95 % of the replicates (R,); None if the figure does not exist in all of them.

    A resample is noisier than the data, which an average of distances such as ECE takes for error. With `biased`,
    the figure itself, the interval is mirrored at it, which takes that excess out again; it holds the figure.
    """
    if not np.isfinite(replicates).all():
        return None
    low, high = (float(value) for value in np.quantile(replicates, _LEVEL))
    return [low, high] if biased is None else [max(0.0, 2 * biased - high), float(max(biased, 2 * biased - low))]


def _at(counts: Counts, threshold: float) -> dict[str, np.ndarray]:
    passed = counts.score >= threshold
    true, false = counts.positives[:, passed].sum(axis=1), counts.negatives[:, passed].sum(axis=1)
    positives, negatives = counts.positives.sum(axis=1), counts.negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        precision = true / (true + false)
    accuracy = (true + negatives - false) / (positives + negatives)
    return {"accuracy": accuracy, "recall": true / positives, "precision": precision, "fpr": false / negatives}


def _passing(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """(R, G) positives and negatives whose score is at or above each score."""
    return np.cumsum(counts.positives[:, ::-1], axis=1)[:, ::-1], np.cumsum(counts.negatives[:, ::-1], axis=1)[:, ::-1]


def _rows(counts: Counts) -> np.ndarray:
    return counts.positives.sum(axis=1) + counts.negatives.sum(axis=1)


def _grouped(counts: Counts) -> Counts:
    """At most _MOST_GROUPS groups of equal size, each at the mean of its scores."""
    [rows] = counts.positives + counts.negatives
    group = ((np.cumsum(rows) - rows) * _MOST_GROUPS // rows.sum()).astype(int)
    _, starts = np.unique(group, return_index=True)
    score = np.add.reduceat(rows * counts.score, starts) / np.add.reduceat(rows, starts)
    return Counts(
        score, np.add.reduceat(counts.positives, starts, axis=1), np.add.reduceat(counts.negatives, starts, axis=1)
    )


def _row_weights(count: int, seed: int, replicates: int = REPLICATES) -> Callable[[], Any]:
    """Bootstrap weights in chunks (r, n), the same ones at every call."""
    chunk = max(1, _FLOATS_PER_CHUNK // count)
    sizes = [min(chunk, replicates - done) for done in range(0, replicates, chunk)]

    def chunks():
        rng = np.random.default_rng(seed)
        for size in sizes:
            rows = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
            yield np.bincount(rows.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)

    return chunks


def _weighted_pearson(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R, n), (n,), (n,) → (R,); NaN where x or y is constant."""
    x, y = x - x.mean(), y - y.mean()
    sums = weights @ np.stack([x, y, x * y, x * x, y * y], axis=1) / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y, xy, xx, yy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))


def _add(found: dict[str, Any], name: str, value: float | None, replicates: np.ndarray) -> None:
    found |= {name: value, f"{name}_95_interval": interval(replicates)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
