"""Folds for cross-fitting: parts of the rows that are each held out once, with equal shares of every class."""

from __future__ import annotations

import numpy as np


def folds_of(strata: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(n,) int64, the fold of each row: whole groups, the biggest first, each to the fold that lacks most of its class.

    A class of two groups or more is never wholly in one fold.

    Args:
        strata: (n,) int, such as the class of each row.
        groups: (n,) int; rows of one group are in one fold.
        count: folds, at least 2.
        seed: of the order of groups of equal size.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    stratum_of = np.zeros(len(sizes), np.int64)
    stratum_of[groups] = strata  # where a group has rows of several, that of the last
    rng = np.random.default_rng(seed)
    fold_of, rows = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for stratum in np.unique(stratum_of):
        members = rng.permutation(np.flatnonzero(stratum_of == stratum))
        own = np.zeros(count, np.int64)
        for group in members[np.argsort(-sizes[members], kind="stable")].tolist():
            fold = int(np.lexsort((rows, own))[0])
            fold_of[group] = fold
            own[fold] += sizes[group]
            rows[fold] += sizes[group]
    return fold_of[groups]
