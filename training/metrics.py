"""Measures how good scores are: the usual figures, and how sure one can be of them.

Each figure is computed from counts: how many positives and negatives have each distinct score. Its 95 % interval:

accuracy, recall, precision, FPR    exact (Clopper-Pearson)
AUROC                               the wider of Newcombe's score interval and the bootstrap
average precision                   the wider of Wilson's with the positives as trials, and the bootstrap
recall at a precision               the wider of Clopper-Pearson's and the bootstrap
FPR at a recall                     the bootstrap; up to 1 with fewer positives than could show that recall
Brier, ECE                          the bootstrap
means over labels                   the bootstrap of the mean, rows drawn for all labels together

The bootstrap is the percentile one: rows are drawn with replacement within each class, so that neither is ever empty,
and the figure is computed for all the replicates at once, as another row of counts. Alone it has no width with one
positive or separated classes. Of more than _MOST_GROUPS distinct scores, neighbours share a group in the bootstrap
(never in the figure itself), which bounds its cost whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from recipes.head_section import GRADED
from training.calibrate import ECE_BINS, ece_bins
from training.grades import order_figures
from training.intervals import Interval, auroc_interval, clopper_pearson, combined, wider, wilson

REPLICATES = 1000

_MOST_GROUPS = 1024
_FLOATS_PER_CHUNK = 4_000_000
_MOST_DRAWN = 2_000_000_000  # rows × labels × replicates of a mean over labels
_FEWEST_REPLICATES = 200
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
    table = confusion(labels, scores >= threshold)
    intervals: dict[str, Interval | None] = dict(_of_shares(table, prevalence))
    row: dict[str, Any] = {"n": len(labels), "positives": int((labels > 0).sum()), "threshold": threshold}
    for name, figure in figures.items():
        [value] = figure(exact)
        row[name] = _number(value)
        if name not in intervals:
            spread = interval(figure(replicates), value if name == "ece" else None)
            exactly = _on_few_rows(name, value, row["positives"], len(labels) - row["positives"], recall_at)
            row[f"{name}_95_interval"] = wider(spread, exactly)
        else:
            pair = intervals[name]
            row[f"{name}_95_interval"] = None if pair is None else list(pair)
    return row | {"confusion": table}


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
    divider: float | None = None,
) -> dict[str, Any]:
    """The figures of a head: of a binary one flat, of several labels each label's beside their mean.

    Args:
        labels: names of the L columns.
        targets: (n, L) 0 or 1, of a regression its value.
        scores: (n, L).
        thresholds: of each label; of a regression none.
        probabilities: whether the scores lie in 0…1.
        divider: the grade from which on a picture is good, for the accuracy of a regression.
    """
    if task in GRADED:
        return regression_metrics(targets[:, 0], scores[:, 0], seed, divider)
    columns = {
        name: _label_metrics(targets[:, at], scores[:, at], thresholds[at], seed, probabilities, prevalence)
        for at, name in enumerate(labels)
    }
    if task == "binary":
        return columns[labels[0]]
    macro = _macro(list(columns.values()), targets, scores, seed)
    table: dict[str, Any] = {"n": len(targets), "macro": macro, "labels": columns}
    hits = targets.argmax(axis=1) == scores.argmax(axis=1)
    if task == "multilabel":
        hits = ((scores >= np.array(thresholds)) == (targets > 0)).all(axis=1)
    table["accuracy"] = float(hits.mean())
    table["accuracy_95_interval"] = list(clopper_pearson(int(hits.sum()), len(hits)))
    if task == "multiclass":
        matrix = np.zeros((len(labels), len(labels)), int)
        np.add.at(matrix, (targets.argmax(axis=1), scores.argmax(axis=1)), 1)
        table["confusion"] = matrix.tolist()  # row: the true class, column: the class of the highest score
    return table


def _label_metrics(
    targets: np.ndarray, scores: np.ndarray, threshold: float, seed: int, probabilities: bool, prevalence: float | None
) -> dict[str, Any]:
    positives = int((targets > 0).sum())
    if positives in (0, len(targets)):
        side = "no" if positives == 0 else "only"
        return {"n": len(targets), "positives": positives, "reason": f"{side} positives, so nothing to tell apart"}
    return binary_metrics(targets, scores, threshold, seed, probabilities=probabilities, prevalence=prevalence)


def _of_shares(table: dict[str, int], prevalence: float | None) -> dict[str, Interval | None]:
    """The exact intervals of the shares of a confusion; at another prevalence, those that follow from them."""
    true, false = table["true_positive"], table["false_positive"]
    positives, negatives = true + table["false_negative"], false + table["true_negative"]
    recall, fpr = clopper_pearson(true, positives), clopper_pearson(false, negatives)
    accuracy = clopper_pearson(true + table["true_negative"], positives + negatives)
    odds = 1.0
    if prevalence is not None:
        values, kept = (true / positives, 1 - false / negatives), (recall, (1 - fpr[1], 1 - fpr[0]))
        accuracy = combined(values, kept, (prevalence, 1 - prevalence))
        odds = prevalence / (1 - prevalence) * negatives / positives
    precision = None
    if true + false:
        low, high = (share * odds / (share * odds + 1 - share) for share in clopper_pearson(true, true + false))
        precision = (low, high)
    return {"recall": recall, "fpr": fpr, "accuracy": accuracy, "precision": precision}


def _on_few_rows(name: str, value: float, positives: int, negatives: int, recall_at: float) -> Interval | None:
    """Return the interval that holds where rows are too few for the bootstrap; None where they are not."""
    if name == "auroc":
        return auroc_interval(float(value), positives, negatives)
    if name == "average_precision":
        return wilson(float(value), positives)
    if name.startswith("recall_at_precision"):
        return clopper_pearson(round(float(value) * positives), positives)
    if name.startswith("fpr_at_recall"):
        low, high = clopper_pearson(round(float(value) * negatives), negatives)
        # n positives vouch for a recall of n / (n + 1) at most, see training.operating_points.
        return low, high if positives >= (positives + 1) * recall_at - _ROUNDING else 1.0
    return None


MACRO = ("auroc", "average_precision", "ece", "brier")


def _macro(columns: list[dict[str, Any]], targets: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, Any]:
    """The mean over the labels that have the figure, with its interval.

    The interval is the percentile bootstrap of the mean itself, of ECE mirrored as for one label; that of an AUROC
    and of an average precision is at least as wide as the labels' own intervals make it, were they independent.
    """
    means: dict[str, Any] = {}
    columns_with = {name: [at for at, column in enumerate(columns) if column.get(name) is not None] for name in MACRO}
    replicates = _macro_replicates(targets, scores, columns_with, seed)
    for name, labels in columns_with.items():
        if not labels:
            continue
        values = [columns[at][name] for at in labels]
        means[name] = float(np.mean(values))
        spread = interval(replicates[name], means[name] if name == "ece" else None)
        if name in ("auroc", "average_precision"):
            own = [columns[at][f"{name}_95_interval"] for at in labels]
            spread = wider(spread, combined(values, own, [1 / len(labels)] * len(labels)))
        means[f"{name}_95_interval"] = spread
    return means


def _macro_replicates(
    targets: np.ndarray, scores: np.ndarray, columns_with: dict[str, list[int]], seed: int
) -> dict[str, np.ndarray]:
    """(R,) of each figure's mean over its labels, rows drawn anew for all labels together.

    Rows are drawn within their stratum, the combination of labels that they have, if it is one of multiclass; a label
    that a resample has no row of is left out of its mean.
    """
    figures: dict[str, Figure] = {"auroc": auroc, "average_precision": average_precision, "brier": brier_of}
    figures["ece"] = ece_of
    labels = sorted({at for kept in columns_with.values() for at in kept})
    work = len(scores) * max(len(labels), 1)
    count = int(np.clip(_MOST_DRAWN // max(work, 1), _FEWEST_REPLICATES, REPLICATES))
    sums = {name: np.zeros(0) for name in columns_with}
    for weights in _row_weights(len(scores), seed, count, _strata(targets))():
        totals = {name: [] for name in columns_with}
        for at in labels:
            counts = _weighted_counts(targets[:, at], scores[:, at], weights)
            for name, kept in columns_with.items():
                if at in kept:
                    with np.errstate(invalid="ignore", divide="ignore"):
                        totals[name].append(figures[name](counts))
        for name, values in totals.items():
            if values:
                sums[name] = np.concatenate([sums[name], _mean_of_known(np.array(values))])
    return sums


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """(labels, r) → (r,) without what is NaN; NaN where nothing else is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(axis=0) / finite.sum(axis=0)


def _strata(targets: np.ndarray) -> np.ndarray | None:
    """(n,) the class of each row where each has one; None when labels overlap."""
    return targets.argmax(axis=1) if (targets.sum(axis=1) == 1).all() else None


def _weighted_counts(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> Counts:
    """The counts of one label in each resample, weights (r, n)."""
    order = np.argsort(scores, kind="stable")
    distinct, starts = np.unique(scores[order], return_index=True)
    if len(distinct) > _MOST_GROUPS:
        place = np.arange(len(order)) * _MOST_GROUPS // len(order)
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        distinct = np.add.reduceat(scores[order], starts) / np.diff(np.append(starts, len(order)))
    drawn = weights[:, order]
    positives = np.add.reduceat(drawn * (labels[order] > 0), starts, axis=1)
    return Counts(distinct, positives, np.add.reduceat(drawn, starts, axis=1) - positives)


def confusion(labels: np.ndarray, passed: np.ndarray) -> dict[str, int]:
    positive = labels > 0
    return {
        "true_positive": int((passed & positive).sum()),
        "false_positive": int((passed & ~positive).sum()),
        "false_negative": int((~passed & positive).sum()),
        "true_negative": int((~passed & ~positive).sum()),
    }


def regression_metrics(
    values: np.ndarray, scores: np.ndarray, seed: int, divider: float | None = None
) -> dict[str, Any]:
    """MSE, MAE, R², Pearson, Spearman, AB and accuracy at the divider, (n,) and (n,), each with its interval.

    `mse_of_mean` is the MSE of always answering the mean of these very values; R² is the share of it that the scores
    take away, below 0 when they are worse than that mean. The bootstrap of Spearman's keeps the ranks of the whole
    sample. AB and accuracy: `training.grades`.
    """
    row: dict[str, Any] = {"n": len(values)}
    count = int(np.clip(_MOST_DRAWN // 50 // max(len(values), 1), _FEWEST_REPLICATES, REPLICATES))
    weights = _row_weights(len(values), seed, count)
    distances = np.abs(values - scores)
    errors, absolute = (
        np.concatenate([chunk @ part for chunk in weights()]) / len(values) for part in (distances**2, distances)
    )
    _add(row, "mse", float((distances**2).mean()), errors)
    _add(row, "mae", float(distances.mean()), absolute)
    row["mse_of_mean"] = float(np.var(values))
    centered = values - values.mean()
    sums = np.concatenate([chunk @ np.stack([centered, centered**2], axis=1) for chunk in weights()]) / len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = 1 - errors / (sums[:, 1] - sums[:, 0] ** 2)
        _add(row, "r2", _number(1 - np.float64(row["mse"]) / row["mse_of_mean"]), replicates)
    for name, x, y in (("pearson", values, scores), ("spearman", rankdata(values), rankdata(scores))):
        replicates = np.concatenate([_weighted_pearson(chunk, x, y) for chunk in weights()])
        [value] = _weighted_pearson(np.ones((1, len(x))), x, y)
        _add(row, name, _number(value), replicates)
    return row | order_figures(values, scores, divider)


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


def _row_weights(
    count: int, seed: int, replicates: int = REPLICATES, strata: np.ndarray | None = None
) -> Callable[[], Iterator[np.ndarray]]:
    """Bootstrap weights in chunks (r, n), the same ones at every call; rows are drawn within their stratum (n,)."""
    chunk = max(1, _FLOATS_PER_CHUNK // count)
    sizes = [min(chunk, replicates - done) for done in range(0, replicates, chunk)]
    members = [np.arange(count)] if strata is None else [np.flatnonzero(strata == kind) for kind in np.unique(strata)]

    def chunks() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        for size in sizes:
            weights = np.empty((size, count))
            for rows in members:
                drawn = rng.integers(0, len(rows), (size, len(rows))) + np.arange(size)[:, None] * len(rows)
                counted = np.bincount(drawn.ravel(), minlength=size * len(rows))
                weights[:, rows] = counted.reshape(size, len(rows))
            yield weights

    return chunks


def _weighted_pearson(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R, n), (n,), (n,) → (R,); NaN where x or y is constant."""
    x, y = x - x.mean(), y - y.mean()
    sums = weights @ np.stack([x, y, x * y, x * x, y * y], axis=1) / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y, xy, xx, yy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))


def _add(row: dict[str, Any], name: str, value: float | None, replicates: np.ndarray) -> None:
    row |= {name: value, f"{name}_95_interval": interval(replicates)}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
