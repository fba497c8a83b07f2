"""How near two sets of embeddings are: what every parity check of the build measures."""

from __future__ import annotations

import numpy as np

from common.manifest import Parity


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(B, D) and (B, D) → (B,) float64, row by row; NaN, which fails every limit, where a row is all zeros."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(axis=1) / lengths


def compare_embeddings(expected: np.ndarray, embeddings: np.ndarray) -> Parity:
    """Compare two (B, D) float32 arrays, row by row."""
    found = cosines(expected, embeddings)
    return Parity(
        pictures=len(expected),
        cosine_min=float(found.min()),
        cosine_mean=float(found.mean()),
        max_abs_difference=float(np.abs(expected - embeddings).max()),
    )
