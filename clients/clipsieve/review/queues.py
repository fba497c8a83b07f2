"""The order in which pictures are looked at: numbers of pictures, from scores and answers alone.

all           every picture, by score
uncertain     those without an answer, nearest the threshold first
disagreeing   those whose answer is another than the head's, the most certain first
unanswered    those without an answer, by score
duplicates    near-duplicates beside one another, groups with different answers first
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Queue = Literal["all", "uncertain", "disagreeing", "unanswered", "duplicates"]
Sort = Literal["highest", "lowest", "near", "name"]
QUEUES: tuple[Queue, ...] = ("all", "uncertain", "disagreeing", "unanswered", "duplicates")
SORTS: tuple[Sort, ...] = ("highest", "lowest", "near", "name")


@dataclass(frozen=True)
class Known:
    """What is known of N pictures, by number."""

    scores: np.ndarray
    """(N,) float32, NaN where there is none."""
    threshold: float
    answered: np.ndarray
    """(N,) bool: has a label or, where grades are given, a grade."""
    answers: np.ndarray
    """(N,) float32: 1 for the positive class and 0 for the negative, or the grade; NaN where there is none."""
    graded: bool
    """Whether `answers` are grades, and scores are on their scale."""
    groups: np.ndarray | None = None
    """(N,) int32: number of the group of near-duplicates, -1 for a picture alone."""


@dataclass(frozen=True)
class Order:
    """Numbers of pictures in order, or why there are none."""

    places: np.ndarray
    note: str = ""


def order_of(known: Known, queue: Queue, sort: Sort = "highest") -> Order:
    """The pictures of a queue; those without a score come last."""
    scored = bool(np.isfinite(known.scores).any())
    if queue == "all":
        return Order(_sorted(known, np.arange(len(known.scores)), sort))
    if queue == "unanswered":
        return Order(_sorted(known, np.flatnonzero(~known.answered), sort))
    if queue == "duplicates":
        return _duplicates(known)
    if not scored:
        return Order(np.empty(0, int), "This queue needs scores: of a table, of a server (--url), or after a training.")
    if queue == "uncertain":
        return Order(_sorted(known, np.flatnonzero(~known.answered & np.isfinite(known.scores)), "near"))
    return _disagreeing(known)


def _sorted(known: Known, places: np.ndarray, sort: Sort) -> np.ndarray:
    if sort == "name":
        return places
    scores = known.scores[places].astype(np.float64)
    rank = {"highest": -scores, "lowest": scores, "near": np.abs(scores - known.threshold)}[sort]
    return places[np.argsort(rank, kind="stable")]  # NaN comes last


def _disagreeing(known: Known) -> Order:
    both = np.isfinite(known.answers) & np.isfinite(known.scores)
    distance = known.scores.astype(np.float64) - (known.answers if known.graded else known.threshold)
    if not known.graded:
        both &= (known.answers == 1) != (known.scores >= np.float32(known.threshold))
    places = np.flatnonzero(both)
    if known.graded:
        places = places[np.abs(distance[places]) >= 1]
    note = "" if len(places) else "The head agrees with every answer."
    return Order(places[np.argsort(-np.abs(distance[places]), kind="stable")], note)


def _duplicates(known: Known) -> Order:
    if known.groups is None:
        return Order(
            np.empty(0, int),
            "Which pictures are near-duplicates is not known here: the column `group` of a table says it, and "
            "training anew (--recipe) makes such a table.",
        )
    places = np.flatnonzero(known.groups >= 0)
    if not len(places):
        return Order(places, "No two pictures are near-duplicates.")
    group = known.groups[places]
    size = np.bincount(group)
    answers = np.where(np.isfinite(known.answers), known.answers, np.nan)[places]
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    has = np.isfinite(answers)
    np.minimum.at(low, group[has], answers[has])
    np.maximum.at(high, group[has], answers[has])
    differ = high > low
    return Order(places[np.lexsort((places, group, -size[group], ~differ[group]))])
