"""Rows that would leak from one side of a split to the other: equal files and near-duplicate embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.errors import StepError
from training.neighbours import Neighbours, unit_vectors

_EDGES_AT_ONCE = 1 << 22
_FEW = 10  # contents, of which any share may be near-duplicates


@dataclass(frozen=True)
class Groups:
    """The rows that belong together, and why."""

    ids: np.ndarray
    """(n,) int64 from 0; rows of one id must share a side."""
    exact_groups: int
    """Contents that several rows have."""
    exact_rows: int
    near_groups: int
    """Groups of several contents, joined by near-duplicates."""
    near_rows: int

    def counts(self) -> dict[str, int]:
        """Count the groups, for a report."""
        return {
            "exact_duplicate_groups": self.exact_groups,
            "exact_duplicate_rows": self.exact_rows,
            "near_duplicate_groups": self.near_groups,
            "near_duplicate_rows": self.near_rows,
        }


def group_rows(
    sha256: list[str],
    embeddings: np.ndarray,
    cosine: float | None,
    together: Sequence[tuple[str, ...]] | None = None,
) -> Groups:
    """Join rows of equal content, of near embeddings and of a given group, also by way of others.

    Args:
        sha256: of each row's content.
        embeddings: (n, D) float32 of any length.
        cosine: embeddings at least this close are near-duplicates; None looks at content only.
        together: of each row the groups that the data sets name: a person, a burst, a video.

    Raises:
        StepError: more than half of all contents are in one group of near-duplicates, or a row is not finite.
    """
    sums, first, content = np.unique(np.array(sha256, np.bytes_), return_index=True, return_inverse=True)
    group_of = np.arange(len(sums))
    if cosine is not None and len(sums) > 1:
        group_of = _near_groups(embeddings[first], cosine)
    rows_of_content = np.bincount(content, minlength=len(sums))
    contents_of_group = np.bincount(group_of)
    ids = group_of[content]
    if together is not None and any(together):
        ids = _with_given_groups(ids, together)
    return Groups(
        ids=ids.astype(np.int64),
        exact_groups=int((rows_of_content > 1).sum()),
        exact_rows=int(rows_of_content[rows_of_content > 1].sum()),
        near_groups=int((contents_of_group > 1).sum()),
        near_rows=int((contents_of_group[ids] > 1).sum()),
    )


def _with_given_groups(ids: np.ndarray, together: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(n,) the groups after those that share a given group have become one."""
    first_row: dict[str, int] = {}
    pairs = [(row, first_row.setdefault(name, row)) for row, names in enumerate(together) for name in names]
    rows, others = np.array(pairs, np.int64).T
    return _joined(ids, rows, others)


def _near_groups(embeddings: np.ndarray, cosine: float) -> np.ndarray:
    """(n,) group of each row, from 0."""
    group_of = np.arange(len(embeddings))
    for rows, others in _gathered(Neighbours(unit_vectors(embeddings)).pairs(cosine)):
        group_of = _joined(group_of, rows, others)
        _check_largest(np.bincount(group_of), cosine)
    return group_of


def _gathered(
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The pairs in portions that are worth joining; memory does not grow with the number of pairs."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, others, _ in blocks:
        held.append((rows, others))
        if sum(len(part) for part, _ in held) >= _EDGES_AT_ONCE:
            yield np.concatenate([part for part, _ in held]), np.concatenate([part for _, part in held])
            held = []
    if held:
        yield np.concatenate([part for part, _ in held]), np.concatenate([part for _, part in held])


def _joined(group_of: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The groups after the groups of each pair have become one."""
    size = int(group_of.max()) + 1
    edges = coo_array((np.ones(len(rows), bool), (group_of[rows], group_of[others])), shape=(size, size))
    _, merged = connected_components(edges, directed=False)
    return merged[group_of]


def _check_largest(contents_of_group: np.ndarray, cosine: float) -> None:
    largest, total = int(contents_of_group.max()), int(contents_of_group.sum())
    if largest * 2 > total > _FEW:
        raise StepError(
            f"{largest} of {total} different images are one group of near-duplicates at fit.near_duplicate_cosine "
            f"{cosine:g}, so no split can keep them together: give a higher value in the recipe, or null to look at "
            "exact duplicates only"
        )
