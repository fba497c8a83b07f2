"""Counts of a head's outputs: scores, decisions and the revision, and a shadow head's beside them."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from metric_counters import Counters, Labels, Registry, le  # pyright: ignore[reportMissingImports] (copied beside it)

DESCRIPTIONS = {
    "clipsieve_scores_total": "Scores given",
    "clipsieve_score_bucket": "Scores at or below le",
    "clipsieve_decisions_total": "Scores by decision: allow, review or block",
    "clipsieve_training_score_ratio": "Share of held-out scores in training at or below le; gt is the bin's lower edge",
    "clipsieve_head_revision": "1 for the revision that spoke last, 0 for an earlier one",
    "clipsieve_shadow_score_bucket": "Scores of the shadow head at or below le",
    "clipsieve_shadow_decisions_total": "Scores of the shadow head by its decision",
    "clipsieve_shadow_disagreements_total": "Scores for which the shadow head decides otherwise",
}
DECISIONS = ("allow", "review", "block")
MOST_LABELS = 100
"""Most labels that are counted, the first ones of a head: each is some twenty time series."""
MOST_PENDING = 100_000
"""Requests set aside between two flushes; beyond them the oldest are not counted."""


@dataclass(frozen=True)
class WatchedHead:
    """Facts that the watch has about its head, from the `parameters` of its config.

    Attributes:
        head: name in the recipe.
        labels: one per score column.
        thresholds: how many each label has.
        edges: upper edges of the histogram's bins, ascending.
        training_ratios: for each label the share of training scores at or below each edge; None if not known.
        training_revision: of the head that they belong to, 16 hexadecimal digits.
        shadow: name of the candidate that runs beside the head, and how many thresholds each of its labels has.
    """

    head: str
    labels: tuple[str, ...]
    thresholds: tuple[int, ...]
    edges: tuple[float, ...]
    training_ratios: tuple[tuple[float, ...], ...] | None = None
    training_revision: str = ""
    shadow: str | None = None
    shadow_thresholds: tuple[int, ...] = ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> WatchedHead:
        return cls(**{key: _frozen(value) for key, value in json.loads(parameters["watched"]).items()})


class ScoreCounts:
    """`record` for each request, `flush` once a second."""

    def __init__(self, watched: WatchedHead, registry: Registry) -> None:
        self._watched = watched
        self._registry = registry
        self._counters = Counters(registry)
        self._pending: deque[dict[str, np.ndarray]] = deque(maxlen=MOST_PENDING)
        self._compared = False
        self._revision: str | None = None  # of the last score
        self._declare()

    def record(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Set a request's tensors aside, by input name: (B, L), `revision` (B, 1)."""
        self._pending.append({name: array.copy() for name, array in outputs.items()})

    def flush(self) -> None:
        """Count what was set aside and hand it to the registry."""
        if not self._compared:
            self._compared = True
            self._set_training_ratios(known=True)
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        if pending:
            self._count({name: np.concatenate([row[name] for row in pending]) for name in pending[0]})
        self._counters.flush()

    def _count(self, outputs: Mapping[str, np.ndarray]) -> None:
        watched = self._watched
        for column, labels in self._columns():
            score, decision = outputs["score"][:, column], outputs["decision"][:, column]
            self._counters.add("clipsieve_scores_total", labels, len(score))
            self._count_scores("clipsieve_score_bucket", labels, score)
            bands = _bands(decision, watched.thresholds[column])
            self._count_bands("clipsieve_decisions_total", labels, bands)
            if watched.shadow is not None:
                self._count_shadow(column, labels, outputs, bands)
        self._see_revision(int(outputs["revision"][-1, 0]))

    def _count_shadow(self, column: int, labels: Labels, outputs: Mapping[str, np.ndarray], bands: np.ndarray) -> None:
        labels = self._shadow_labels(labels)
        self._count_scores("clipsieve_shadow_score_bucket", labels, outputs["shadow_score"][:, column])
        others = _bands(outputs["shadow_decision"][:, column], self._watched.shadow_thresholds[column])
        self._count_bands("clipsieve_shadow_decisions_total", labels, others)
        if len(bands) == len(others):  # not if one of the two has no thresholds
            self._counters.add("clipsieve_shadow_disagreements_total", labels, int((bands != others).sum()))

    def _count_scores(self, name: str, labels: Labels, scores: np.ndarray) -> None:
        buckets = np.searchsorted(self._watched.edges, scores.astype(np.float64), side="left")
        self._counters.add_buckets(name, labels, self._watched.edges, buckets.tolist())

    def _count_bands(self, name: str, labels: Labels, bands: np.ndarray) -> None:
        for band, count in zip(*np.unique(bands, return_counts=True), strict=True):
            self._counters.add(name, (*labels, ("decision", DECISIONS[band])), int(count))

    def _columns(self) -> list[tuple[int, Labels]]:
        head, labels = self._watched.head, self._watched.labels
        return [(column, (("head", head), ("label", label))) for column, label in enumerate(labels[:MOST_LABELS])]

    def _shadow_labels(self, labels: Labels) -> Labels:
        return (*labels, ("shadow", str(self._watched.shadow)))

    def _declare(self) -> None:
        """Start every series at 0: a bucket that is not there yet would be missing from a sum."""
        counters, watched = self._counters, self._watched
        for column, labels in self._columns():
            counters.add("clipsieve_scores_total", labels, 0)
            counters.add_buckets("clipsieve_score_bucket", labels, watched.edges, [])
            self._declare_decisions("clipsieve_decisions_total", labels, watched.thresholds[column])
            if watched.shadow is not None:
                labels = self._shadow_labels(labels)
                counters.add_buckets("clipsieve_shadow_score_bucket", labels, watched.edges, [])
                counters.add("clipsieve_shadow_disagreements_total", labels, 0)
                self._declare_decisions("clipsieve_shadow_decisions_total", labels, watched.shadow_thresholds[column])

    def _declare_decisions(self, name: str, labels: Labels, thresholds: int) -> None:
        for decision in {0: (), 1: ("allow", "block")}.get(thresholds, DECISIONS):
            self._counters.add(name, (*labels, ("decision", decision)), 0)

    def _see_revision(self, revision: int) -> None:
        text = f"{revision:016x}"
        if text == self._revision:
            return
        if self._revision is not None:
            self._set_revision(self._revision, 0)
        self._set_revision(text, 1)
        self._set_training_ratios(known=text == self._watched.training_revision)
        self._revision = text

    def _set_revision(self, revision: str, value: float) -> None:
        self._registry.set("clipsieve_head_revision", (("head", self._watched.head), ("revision", revision)), value)

    def _set_training_ratios(self, known: bool) -> None:
        """Set the ratios of the training, or NaN when another head answers than the one they belong to."""
        watched = self._watched
        for (_, labels), ratios in zip(self._columns(), watched.training_ratios or (), strict=False):
            lower = -math.inf
            for edge, ratio in zip((*watched.edges, math.inf), (*ratios, 1.0), strict=True):
                bin_labels = (*labels, ("gt", le(lower)), ("le", le(edge)))
                self._registry.set("clipsieve_training_score_ratio", bin_labels, ratio if known else math.nan)
                lower = edge


def _frozen(value: Any) -> Any:
    """Lists, and lists in lists, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _bands(decision: np.ndarray, thresholds: int) -> np.ndarray:
    """Indices into DECISIONS: passing the last threshold is block, an earlier one review; none without thresholds."""
    if thresholds == 0:
        return np.zeros(0, np.int64)
    return np.where(decision >= thresholds, 2, np.minimum(decision, 1))
