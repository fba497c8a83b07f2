"""Measurements of each peer, round by round, and the figures made from them: medians, and ratios of one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import numpy as np

from benchmarks.comparison import Comparison, comparisons_json, rounded

LATENCY, THROUGHPUT = "clipsieve fp32", "clipsieve fp32 throughput"
"""Our rows at fp32, by the recipe's `serving.goal`."""


@dataclass
class Measured:
    """One peer's measurements; a list has one entry a round."""

    name: str
    weights: str = ""
    """Id of the encoder: only peers with the same weights are compared."""
    version: str = ""
    setting: str = ""
    """The best setting, such as `8 at once, 2 workers`."""
    difference: float | None = None
    """1 - cosine to our embeddings, or the largest difference of scores, on the first pictures."""
    images_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Processor time for an image, of the peer and not of the load."""
    busy: list[float] = field(default_factory=list)
    """Share of all cores' time that was spent, by the peer and the load, while it scored as many as it can."""
    alone_ms: list[list[float]] = field(default_factory=list)
    """Latencies of all pictures, one after another, for each round."""
    loaded_ms: list[list[float]] = field(default_factory=list)
    """Latencies at the offered load, for each round."""
    cold_start_s: list[float] = field(default_factory=list)
    resident_mib: float | None = None
    problem: str | None = None
    """Why it was not measured, or not to the end."""


@dataclass(frozen=True)
class Figures:
    """Figures of one peer; None when a figure does not apply or could not be measured."""

    name: str
    images_per_s: float | None = None
    p50_ms: float | None = None
    p99_loaded_ms: float | None = None
    cpu_ms: float | None = None
    busy: float | None = None
    resident_mib: float | None = None
    cold_start_s: float | None = None
    difference: float | None = None
    weights: str = ""
    version: str = ""
    setting: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class PairedRatio:
    """Images/s of one peer divided by another's in the same round: what the machine did then weighs on both."""

    ours: str
    to: str
    rounds: int
    lowest: float
    median: float
    highest: float


def figures_of(row: Measured) -> Figures:
    return Figures(
        name=row.name,
        images_per_s=_median(row.images_per_s),
        p50_ms=_median(picture_latencies(row.alone_ms)),
        p99_loaded_ms=_percentile([each for round_ in row.loaded_ms for each in round_], 99),
        cpu_ms=_median(row.cpu_ms),
        busy=_median(row.busy),
        resident_mib=row.resident_mib,
        cold_start_s=_median(row.cold_start_s),
        difference=row.difference,
        weights=row.weights,
        version=row.version,
        setting=row.setting,
        problem=row.problem,
    )


def picture_latencies(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Median latency of each picture over the rounds."""
    return np.median(np.array(rounds), axis=0).tolist() if rounds else []


def added_ms(served: Measured, limit: Measured) -> float | None:
    """The median over pictures of what the server adds to a picture's latency; None without both."""
    pairs = zip(picture_latencies(served.alone_ms), picture_latencies(limit.alone_ms), strict=False)
    return _median([with_server - without for with_server, without in pairs])


def paired_ratios(rows: Mapping[str, Measured]) -> list[PairedRatio]:
    """Every row of ours against the limit and every peer with the same weights."""
    ours = [row for name, row in rows.items() if is_ours(name)]
    others = [row for name, row in rows.items() if not is_ours(name)]
    ratios = [paired_ratio(row, other) for other in others for row in ours if row.weights == other.weights]
    return [ratio for ratio in ratios if ratio is not None]


def paired_ratio(ours: Measured, other: Measured) -> PairedRatio | None:
    """Spread of the ratios of the rounds that both were measured in; None without one."""
    ratios = [mine / theirs for mine, theirs in zip(ours.images_per_s, other.images_per_s, strict=False)]
    if not ratios:
        return None
    return PairedRatio(ours.name, other.name, len(ratios), min(ratios), median(ratios), max(ratios))


def is_ours(name: str) -> bool:
    return name.startswith("clipsieve")


def comparisons(rows: Mapping[str, Measured]) -> list[Comparison]:
    """Targets of our rows against the `limit` and the best of the others; images/s as the median of paired ratios."""
    limit, latency, throughput = (rows.get(name, Measured(name)) for name in ("limit", LATENCY, THROUGHPUT))
    int8 = rows.get("clipsieve int8", Measured("clipsieve int8"))
    peers = [row for name, row in rows.items() if name != limit.name and not is_ours(name)]
    others = [row for row in peers if row.weights == latency.weights]
    best = _best(others, "images_per_s")
    return [
        _images_ratio(throughput, limit, "goal throughput / limit, images/s", 0.93),
        Comparison("goal latency, added p50 at concurrency 1, ms", added_ms(latency, limit), 3.0, False, limit.name),
        _images_ratio(latency, best, "fp32 / best peer, images/s", 1.3),
        _images_ratio(int8, best, "int8 / best peer, images/s", 2.0),
        _ratio(latency, _best(others, "p99_loaded_ms"), "p99_loaded_ms", "p99 at equal load / best peer", 0.7),
        _ratio(latency, _best(others, "cold_start_s"), "cold_start_s", "cold start / fastest peer", 1.0),
    ]


def as_json(
    figures: Sequence[Figures], compared: Sequence[Comparison], ratios: Sequence[PairedRatio] = ()
) -> dict[str, object]:
    """Rounded, without NaN."""
    peers, paired = [rounded(asdict(row)) for row in figures], [rounded(asdict(row)) for row in ratios]
    return {"peers": peers, "paired_ratios": paired, "comparisons": comparisons_json(compared)}


def _best(rows: Sequence[Measured], key: str) -> Measured:
    """The best of the peers that have the figure: most images/s, least of everything else."""
    values = {row.name: getattr(figures_of(row), key) for row in rows}
    having = [row for row in rows if values[row.name] is not None]
    better = max if key == "images_per_s" else min
    return better(having, key=lambda row: values[row.name], default=Measured("no peer"))


def _images_ratio(ours: Measured, other: Measured, name: str, target: float) -> Comparison:
    ratio = paired_ratio(ours, other)
    return Comparison(name, ratio.median if ratio else None, target, True, other.name)


def _ratio(ours: Measured, other: Measured, key: str, name: str, most: float) -> Comparison:
    value, to = getattr(figures_of(ours), key), getattr(figures_of(other), key)
    return Comparison(name, value / to if value is not None and to else None, most, False, other.name)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
