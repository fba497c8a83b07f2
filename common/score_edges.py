"""Edges of the histograms of scores, the same in training and in serving, so that the two can be compared."""

from __future__ import annotations

from recipes.head_section import GRADED

PROBABILITY_EDGES = [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999]
"""Finer at both ends, where most scores of a good head lie."""

RATING_EDGES = [step / 2 for step in range(21)]
"""0 to 10 in halves: of a regression whose scores on held-out data are not known, as of a published head."""


def default_edges(task: str) -> list[float]:
    """Upper edges of the bins, ascending; a last bin takes what is above."""
    return RATING_EDGES if task in GRADED else PROBABILITY_EDGES
