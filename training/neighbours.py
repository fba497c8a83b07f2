"""Near embeddings through faiss: all pairs above a cosine, and the nearest of each row.

Up to EXACT_ROWS the search is exhaustive. Above, the rows are put into about 2·√n cells and each is
compared with those of the PROBED_CELLS cells nearest to it, at half the memory (float16): n·√n work
instead of n². Pairs that are nearly the same lie in the same cell or the next; every pair that is found is
measured again in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from training.errors import StepError

EXACT_ROWS = 20_000
PROBED_CELLS = 16
_HITS_AT_ONCE = 1 << 24  # bounds the answer to one query, about 200 MB
_FLOAT16_SLACK = 2e-3


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """(n, D) float32 of length 1; rows of zeros stay.

    Raises:
        StepError: a row is not finite.
    """
    vectors = np.array(embeddings, np.float32, order="C")
    with np.errstate(over="ignore", invalid="ignore"):  # judged on the next line
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(norms[:, 0]))
    if len(broken):
        raise StepError(f"{len(broken)} of {len(norms)} embeddings are not finite, the first in row {broken[0]}")
    vectors /= np.maximum(norms, 1e-12)
    return vectors


class Neighbours:
    """The rows of one matrix, ready to be searched.

    Args:
        vectors: (n, D) float32 of length 1, as `unit_vectors` gives.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self.exact = len(vectors) <= EXACT_ROWS
        self._index = _exact_index(vectors) if self.exact else _cell_index(vectors)

    def pairs(self, cosine: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of (row, later row, their cosine), of every two rows that are at least this near."""
        count = len(self._vectors)
        block = max(1, min(4096, _HITS_AT_ONCE // max(count, 1)))
        least = cosine - (0 if self.exact else _FLOAT16_SLACK)
        for start in range(0, count, block):
            queries = self._vectors[start : start + block]
            limits, _, neighbours = self._index.range_search(queries, least - 1e-6)
            rows = np.repeat(np.arange(start, start + len(queries)), np.diff(limits.astype(np.int64)))
            later = neighbours > rows
            yield self._measured(rows[later], neighbours[later], cosine)

    def nearest(self, k: int) -> np.ndarray:
        """(n, k) float32: each row's cosines with its k nearest others, the nearest first."""
        cosines_of = np.empty((len(self._vectors), k), np.float32)
        for start in range(0, len(self._vectors), 4096):
            cosines, _ = self._index.search(self._vectors[start : start + 4096], k + 1)
            cosines_of[start : start + 4096] = np.maximum(cosines[:, 1:], -1)  # the first is the row itself
        return cosines_of

    def _measured(
        self, rows: np.ndarray, others: np.ndarray, cosine: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cosines = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 65_536):
            part = slice(start, start + 65_536)
            cosines[part] = np.einsum("ij,ij->i", self._vectors[rows[part]], self._vectors[others[part]])
        near = cosines >= cosine - 1e-6  # equal vectors may come out a rounding below 1
        return rows[near], others[near], cosines[near]


def _exact_index(vectors: np.ndarray) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _cell_index(vectors: np.ndarray) -> faiss.Index:
    cells = round(2 * math.sqrt(len(vectors)))
    index: Any = faiss.index_factory(vectors.shape[1], f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.nprobe = PROBED_CELLS
    index.train(vectors)
    index.add(vectors)
    return index
