"""The distribution of a head's scores on held-out data, with which served scores are compared to see a drift."""

from __future__ import annotations

import numpy as np

from common.manifest import ScoreDistribution
from common.score_edges import default_edges
from recipes.head_section import GRADED

QUANTILES = np.linspace(0.1, 0.9, 9)


def score_distribution(task: str, scores: np.ndarray) -> ScoreDistribution:
    """Cumulative histogram of (n, L) scores; a regression is cut at its own deciles, probabilities at fixed edges."""
    served = scores.astype(np.float32)  # as the server's are, so that both fall on the same side of an edge
    edges = _decile_edges(served) if task in GRADED else default_edges(task)
    ratios = (served[:, :, None] <= np.array(edges)).mean(axis=0)  # (L, len(edges))
    return ScoreDistribution(images=len(served), edges=edges, ratios=ratios.round(6).tolist())


def _decile_edges(scores: np.ndarray) -> list[float]:
    """Six digits each, as they are written in metrics; fewer than nine where scores repeat."""
    return sorted({float(f"{value:.6g}") for value in np.quantile(scores.astype(np.float64), QUANTILES)})
