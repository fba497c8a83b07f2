"""Requests at 20 to 100 % of what the server can do, whatever it answers: how long they take, how many it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.growth.load import group_requests, kept_busy, offered, per_second
from benchmarks.growth.rounds import rotated, say
from benchmarks.growth.scene import Scene
from benchmarks.offered_load import Answer, percentile_ms, score_request
from benchmarks.peers.pictures import jpeg_pictures

PERCENTS = (20, 40, 60, 80, 90, 100)
LENGTH = 1.5
"""Length of the load at each rate, in measurements: a percentile needs many answers."""


def measure(scene: Scene) -> dict[str, Any]:
    """Pictures of mixed size, one a request, as interactive work, which waits no longer than the recipe says.

    Each round measures the capacity anew and offers shares of that.
    """
    requests = [score_request(picture) for picture in jpeg_pictures()]
    capacities: list[float] = []
    answers: dict[int, list[Answer]] = {percent: [] for percent in PERCENTS}
    for number in range(scene.settings.rounds):
        capacities.append(_capacity(scene))
        say(f"rates: round {number + 1} of {scene.settings.rounds}, the server can do {capacities[-1]:.1f} images/s")
        for percent in rotated(PERCENTS, number * len(PERCENTS) // scene.settings.rounds):
            rate = capacities[-1] * percent / 100
            answers[percent] += offered(scene.server.grpc_url, requests, rate, LENGTH * scene.settings.seconds)
    capacity = median(capacities)
    return {
        "capacity_per_s": capacity,
        "queue_timeout_ms": scene.recipe.serving.queue_timeout_ms,
        "rows": [row_of(percent, capacity, answers[percent]) for percent in PERCENTS],
    }


def _capacity(scene: Scene) -> float:
    """Images/s with the best number under way all the time."""
    requests = group_requests(jpeg_pictures(), 1)
    return per_second(kept_busy(scene.server.grpc_url, requests, scene.concurrency, scene.settings.seconds))


def row_of(percent: int, capacity_per_s: float, answers: Sequence[Answer]) -> dict[str, float]:
    """Figures of one rate over the answers of all rounds; latencies are of the answers with a score."""
    return {
        "percent": percent,
        "rate_per_s": capacity_per_s * percent / 100,
        "requests": len(answers),
        "p50_ms": percentile_ms(answers, 50),
        "p95_ms": percentile_ms(answers, 95),
        "p99_ms": percentile_ms(answers, 99),
        "refused_ratio": _ratio(answers, {"UNAVAILABLE"}),
        "failed_ratio": 1 - _ratio(answers, {"OK", "UNAVAILABLE"}),
    }


def _ratio(answers: Sequence[Answer], statuses: set[str]) -> float:
    return sum(answer.status in statuses for answer in answers) / len(answers)
