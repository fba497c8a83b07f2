"""Measurements of each peer, round by round, and the figures made from them: medians, ratios, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import numpy as np

from benchmarks.comparison import Comparison, comparisons_json, rounded


@dataclass
class Measured:
    """One peer's measurements; a list has one entry a round."""

    name: str
    version: str = ""
    setting: str = ""
    """The best setting, such as `8 at once, 2 workers`."""
    difference: float | None = None
    """1 - cosine to our embeddings, or the largest difference of scores, on the first pictures."""
    images_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    """Processor time for an image, of the peer and not of the load."""
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
    resident_mib: float | None = None
    cold_start_s: float | None = None
    difference: float | None = None
    version: str = ""
    setting: str = ""
    problem: str | None = None


def figures_of(row: Measured) -> Figures:
    return Figures(
        name=row.name,
        images_per_s=_median(row.images_per_s),
        p50_ms=_median(picture_latencies(row.alone_ms)),
        p99_loaded_ms=_percentile([each for round_ in row.loaded_ms for each in round_], 99),
        cpu_ms=_median(row.cpu_ms),
        resident_mib=row.resident_mib,
        cold_start_s=_median(row.cold_start_s),
        difference=row.difference,
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


def comparisons(rows: Mapping[str, Measured]) -> list[Comparison]:
    """Targets of `clipsieve fp32` and `clipsieve int8` against the `limit` and the best of all others."""
    figures = {name: figures_of(row) for name, row in rows.items()}
    ours, int8, limit = (figures.get(name, Figures(name)) for name in ("clipsieve fp32", "clipsieve int8", "limit"))
    others = [each for name, each in figures.items() if name != limit.name and not name.startswith("clipsieve")]
    nothing = Measured("")
    added = added_ms(rows.get(ours.name, nothing), rows.get(limit.name, nothing))
    return [
        _ratio_to(limit, ours, "images_per_s", "served / limit, images/s", 0.95),
        Comparison("added p50 at concurrency 1, ms", added, 3.0, False, limit.name),
        _ratio_to(_best(others, "images_per_s"), ours, "images_per_s", "fp32 / best peer, images/s", 1.3),
        _ratio_to(_best(others, "images_per_s"), int8, "images_per_s", "int8 / best peer, images/s", 2.0),
        _ratio_to(_best(others, "p99_loaded_ms"), ours, "p99_loaded_ms", "p99 at equal load / best peer", 0.7),
        _ratio_to(_best(others, "cold_start_s"), ours, "cold_start_s", "cold start / fastest peer", 1.0),
    ]


def as_json(figures: Sequence[Figures], compared: Sequence[Comparison]) -> dict[str, object]:
    """Rounded, without NaN."""
    peers = [rounded(asdict(row)) for row in figures]
    return {"peers": peers, "comparisons": comparisons_json(compared)}


def _best(figures: Sequence[Figures], key: str) -> Figures:
    """The best of the peers that have the figure: most images/s, least of everything else."""
    having = [each for each in figures if getattr(each, key) is not None]
    better = max if key == "images_per_s" else min
    return better(having, key=lambda each: getattr(each, key), default=Figures("no peer"))


def _ratio_to(other: Figures, ours: Figures, key: str, name: str, target: float) -> Comparison:
    value, to = getattr(ours, key), getattr(other, key)
    ratio = value / to if value is not None and to else None
    return Comparison(name, ratio, target, key == "images_per_s", other.name)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
