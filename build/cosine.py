"""Measures how near two sets of embeddings are, for every parity check of the build."""

from __future__ import annotations

import numpy as np

from common.manifest import Parity


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row: (B, D) and (B, D) → (B,) float64; a row of zeros gives NaN, which fails every limit."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(axis=1) / lengths


def compare_embeddings(expected: np.ndarray, embeddings: np.ndarray) -> Parity:
    """Compare two (B, D) float32 arrays, row by row."""
    row_cosines = cosines(expected, embeddings)
    return Parity(
        pictures=len(expected),
        cosine_min=float(row_cosines.min()),
        cosine_mean=float(row_cosines.mean()),
        max_abs_difference=float(np.abs(expected - embeddings).max()),
    )
