"""Seconds of one call, where calls may only be queued on a device until it is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

LEAST_ROUND_S = 0.05
LEAST_ROUNDS = 3


def seconds_per_call(
    call: Callable[[], object],
    wait: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median over rounds of a call's seconds; a round has as many calls as fill LEAST_ROUND_S.

    Args:
        call: begins the work.
        wait: returns when all work that was begun is done.
        seconds: that the rounds take together, at least; there are LEAST_ROUNDS of them.
        clock: reads seconds.
    """

    def round_s(count: int) -> float:
        started = clock()
        for _ in range(count):
            call()
        wait()
        return clock() - started

    round_s(2)  # compiles, allocates and chooses kernels
    count = max(1, round(LEAST_ROUND_S / max(round_s(1), 1e-6)))
    rounds: list[float] = []
    while len(rounds) < LEAST_ROUNDS or sum(rounds) < seconds:
        rounds.append(round_s(count))
    return median(rounds) / count
