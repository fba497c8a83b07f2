"""Which two pictures to show side by side: those of which a comparison teaches most.

The first is one of those that were compared least. The second was compared before, unless it is the very first pair, so
that all compared pictures hang together; among those it is near in the current score, because the outcome is then least
certain, and was itself compared little. No pair is shown twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

_WEIGHT_OF_A_COMPARISON = 0.02
"""A comparison more weighs as much as this share of all pictures between the two."""


def next_pair(
    count: int,
    pairs: Sequence[tuple[int, int]],
    scores: np.ndarray,
    passed: Collection[frozenset[int]] = (),
    left_out: Collection[int] = (),
    seed: int = 0,
) -> tuple[int, int] | None:
    """Numbers of two pictures; None when no two are left.

    Args:
        count: of the pictures.
        pairs: winner and loser of each comparison so far.
        scores: (count,) NaN where there is none; without any the comparisons themselves order the pictures.
        passed: pairs that were not decided.
        left_out: pictures that cannot be shown.
        seed: of the draw between equals.
    """
    rng = np.random.default_rng((seed, len(pairs), len(passed)))
    decided = np.array(pairs, int).reshape(-1, 2)
    shown = np.concatenate([decided, np.array([sorted(pair) for pair in passed], int).reshape(-1, 2)])
    compared = np.bincount(decided.ravel(), minlength=count)
    can = np.ones(count, bool)
    can[list(left_out)] = False
    rank = _ranks(scores if np.isfinite(scores).any() else standing(count, decided))
    for first in _least_compared(compared, can, rng):
        others = can.copy()
        others[shown[(shown == first).any(axis=1)].ravel()] = False
        others[first] = False
        if compared.any():
            joined = others & (compared > 0)
            others = joined if joined.any() else others
        if not others.any():
            continue
        cost = np.abs(rank - rank[first]) + _WEIGHT_OF_A_COMPARISON * compared + 1e-4 * rng.random(count)
        second = int(np.where(others, cost, np.inf).argmin())
        return (first, second) if rng.random() < 0.5 else (second, first)
    return None


def standing(count: int, pairs: np.ndarray) -> np.ndarray:
    """(count,) the share that each picture won of its comparisons, drawn to the middle; NaN of those without any.

    Args:
        count: of the pictures.
        pairs: (m, 2) winner and loser.
    """
    won, lost = (np.bincount(pairs[:, side], minlength=count) for side in (0, 1))
    return np.where(won + lost > 0, (won + 1) / (won + lost + 2), np.nan)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """(count,) from 0 to 1; in the middle for those without a score."""
    ranks = np.full(len(scores), 0.5)
    known = np.flatnonzero(np.isfinite(scores))
    ranks[known[np.argsort(scores[known], kind="stable")]] = np.linspace(0, 1, len(known))
    return ranks


def _least_compared(compared: np.ndarray, can: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Pictures that can be shown, those with the fewest comparisons first; a few of them, for there are many."""
    places = np.flatnonzero(can)
    order = np.lexsort((rng.random(len(places)), compared[places]))
    return places[order[:1000]].tolist()
