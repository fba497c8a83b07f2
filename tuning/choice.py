"""Curves from measured rows, and which setting is the best of several."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuning.candidates import Setting
from tuning.rows import Figures, Row

NOISE = 0.03
"""Throughputs that differ by less, relative to the higher, are equal."""


@dataclass(frozen=True)
class Point:
    """Medians over rounds at one concurrency."""

    concurrency: int
    images_per_s: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        figures = f"{self.images_per_s:.1f} images/s, p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms"
        return f"{figures} at {self.concurrency} in flight"


Curve = Sequence[Point]
"""By ascending concurrency; empty where nothing could be measured."""


def curves(rows: Iterable[Row]) -> dict[Setting, Curve]:
    """Of each setting, in the order in which they were first measured."""
    by_setting: dict[Setting, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, []).append(row)
    return {setting: curve(measured) for setting, measured in by_setting.items()}


def curve(rows: Iterable[Row]) -> Curve:
    """Of one setting's rows. A concurrency that failed in half of the rounds, or more, is left out."""
    figures_of: dict[int, list[Figures | None]] = {}
    for row in rows:
        if row.concurrency is not None:
            figures_of.setdefault(row.concurrency, []).append(row.figures)
    whole = {concurrency: [each for each in figures if each] for concurrency, figures in figures_of.items()}
    return [
        Point(concurrency, *(statistics.median(getattr(each, name) for each in figures) for name in _NAMES))
        for concurrency, figures in sorted(whole.items())
        if 2 * len(figures) > len(figures_of[concurrency])
    ]


_NAMES = ("images_per_s", "p50_ms", "p99_ms")


def best_point(points: Curve, p99_budget_ms: float | None) -> Point | None:
    """The highest throughput within the budget; None where no point is."""
    within = [point for point in points if p99_budget_ms is None or point.p99_ms <= p99_budget_ms]
    return max(within, key=lambda point: point.images_per_s, default=None)


def choose(measured: Mapping[Setting, Curve], incumbent: Setting, p99_budget_ms: float | None) -> Setting:
    """The setting with the highest throughput within the budget; of those equal within the noise the cheapest.

    Where none is within the budget, the one nearest to it; where nothing could be measured, the incumbent.
    """
    best = {setting: best_point(points, p99_budget_ms) for setting, points in measured.items()}
    throughput = {setting: point.images_per_s for setting, point in best.items() if point is not None}
    if throughput:
        limit = max(throughput.values()) * (1 - NOISE)
        equal = [setting for setting, value in throughput.items() if value >= limit]
        return min(equal, key=lambda setting: (*cost(setting), setting != incumbent, -throughput[setting]))
    latency = {setting: min(point.p99_ms for point in points) for setting, points in measured.items() if points}
    return min(latency, key=lambda setting: latency[setting], default=incumbent)


def cost(setting: Setting) -> tuple[int, ...]:
    """Copies of the encoder, then processes, then memory for a batch, then waiting."""
    return (
        setting.encoder_instances,
        setting.preprocess_instances,
        setting.max_batch_size,
        setting.max_queue_delay_us,
    )
