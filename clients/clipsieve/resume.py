"""Finds the inputs of a run that already have a row.

Rows are committed in the order of the inputs, so as long as inputs and rows agree one by one there is nothing
to remember. Where they part, because files came or went in between, the rest of the rows is remembered as a
sorted array of 64-bit hashes with counts: 12 bytes a row. An input is then passed over once for each row of
its name. (Two of a hundred million names share a hash with a chance of 1 in 4000; one of them would be missing.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from clipsieve.paths import text_from_path
from clipsieve.scoring import Item

_PIECE = 4096


class Done:
    """The rows there are, by name as it is written in the table.

    After all inputs were seen, `left_over` counts the rows whose input is no longer there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = iter(names)
        self._next = next(self._names, None)
        self._hashes: np.ndarray | None = None  # (N,) uint64 ascending, once the order was lost
        self._counts = np.empty(0, np.uint32)

    @property
    def left_over(self) -> int:
        if self._hashes is None:
            self._remember()
        return int(self._counts.sum())

    def without(self, items: Iterable[Item]) -> Iterator[Item]:
        """The inputs that have no row yet."""
        for item in items:
            if not self._has(text_from_path(item[0])):
                yield item

    def _has(self, name: str) -> bool:
        if self._hashes is None:
            if self._next is None:
                return False
            if self._next == name:
                self._next = next(self._names, None)
                return True
            self._remember()
        return self._take(name)

    def _remember(self) -> None:
        rest = [] if self._next is None else [self._next]
        pieces = [np.array([_hash(name) for name in rest], np.uint64)]
        while piece := [_hash(name) for name in islice(self._names, _PIECE)]:
            pieces.append(np.array(piece, np.uint64))
        self._hashes, counts = np.unique(np.concatenate(pieces), return_counts=True)
        self._counts = counts.astype(np.uint32)
        self._next = None

    def _take(self, name: str) -> bool:
        assert self._hashes is not None
        value = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, value))
        if place == len(self._hashes) or self._hashes[place] != value or not self._counts[place]:
            return False
        self._counts[place] -= 1
        return True


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
