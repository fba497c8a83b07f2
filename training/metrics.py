"""How good scores are: the usual figures, and how sure one can be of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

_FLOATS_PER_CHUNK = 4_000_000


def binary_metrics(labels: np.ndarray, scores: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    """Figures for one label on data that holds both classes.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) higher is more positive.
        threshold: a score at or above it counts as positive.
        seed: of the bootstrap.
    """
    (true_negative, false_positive), (false_negative, true_positive) = confusion_matrix(
        labels, scores >= threshold, labels=[0, 1]
    ).tolist()
    passed = true_positive + false_positive
    return {
        "n": len(labels),
        "auroc": float(roc_auc_score(labels, scores)),
        "auroc_95_interval": list(auroc_interval(labels, scores, seed)),
        "average_precision": float(average_precision_score(labels, scores)),
        "threshold": threshold,
        "accuracy": (true_positive + true_negative) / len(labels),
        "recall": true_positive / (true_positive + false_negative),
        "precision": true_positive / passed if passed else None,  # of no image there is no precision
        "confusion": {
            "true_positive": true_positive,
            "false_positive": false_positive,
            "false_negative": false_negative,
            "true_negative": true_negative,
        },
    }


def auroc_interval(
    labels: np.ndarray, scores: np.ndarray, seed: int, replicates: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of AUROC, resampling within each class so that neither is ever empty."""
    order = np.argsort(scores, kind="stable")
    labels, scores = labels[order], scores[order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores) != 0])  # of each run of equal scores
    rng = np.random.default_rng(seed)
    chunk = max(1, _FLOATS_PER_CHUNK // len(labels))
    sizes = [min(chunk, replicates - done) for done in range(0, replicates, chunk)]
    values = np.concatenate([_resampled_auroc(labels, starts, size, rng) for size in sizes])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_auroc(labels: np.ndarray, starts: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """(replicates,) AUROC, each of one resample; rows are sorted by score."""
    counts = np.zeros((replicates, len(labels)))  # how often each row is drawn
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), replicates)
    positives = np.add.reduceat(counts * (labels == 1), starts, axis=1)  # (replicates, distinct scores)
    negatives = np.add.reduceat(counts * (labels == 0), starts, axis=1)
    negatives_below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (negatives_below + negatives / 2)).sum(axis=1)
    return wins / (positives.sum(axis=1) * negatives.sum(axis=1))
