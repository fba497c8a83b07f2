"""Measures every case once a round, so that a slow minute of the machine hits them all; results are medians."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from statistics import median
from typing import Generic, TypeVar

import numpy as np

Case = TypeVar("Case", bound=Hashable)


def interleaved(part: str, cases: Sequence[Case], rounds: int) -> Iterator[Case]:
    """Yield each case once a round; every round begins with another case."""
    for number in range(rounds):
        say(f"{part}: round {number + 1} of {rounds}")
        yield from rotated(cases, number * len(cases) // rounds)


def rotated(items: Sequence[Case], first: int) -> list[Case]:
    """All of them, beginning with the item at `first`."""
    return [*items[first:], *items[:first]]


class Samples(Generic[Case]):
    """Named measurements of each case, one value a round."""

    def __init__(self) -> None:
        self._values: dict[Case, dict[str, list[float]]] = {}

    def add(self, case: Case, **values: float) -> None:
        kept = self._values.setdefault(case, {})
        for name, value in values.items():
            kept.setdefault(name, []).append(value)

    def medians(self, case: Case) -> dict[str, float]:
        return {name: median(values) for name, values in self._values[case].items()}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line: how much y grows when x grows by one."""
    return float(np.polyfit(x, y, 1)[0])


def say(text: str) -> None:
    print(f"growth: {text}", file=sys.stderr, flush=True)
