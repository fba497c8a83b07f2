"""Waits for an event as long as a slow and busy machine may need, and no longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""Ten times and more what anything that is waited for takes on a quiet machine."""


def until(condition: Callable[[], object], what: str = "it", pause_s: float = 0.02) -> None:
    """Ask again and again until the condition holds.

    Raises:
        AssertionError: it does not within `PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_S:.0f} s"
        time.sleep(pause_s)


def settled(read: Callable[[], int]) -> int:
    """Return a number that has not changed for a second, such as a count that the server writes after it answered."""
    last = read()
    while True:
        time.sleep(1)
        last, before = read(), last
        if last == before:
            return last
