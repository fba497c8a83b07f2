"""Titles of the pictures: the result in words, made from the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Part = Mapping[str, Any]

UNNOTICED = 0.05
"""A relative difference that is none here, where rounds differ as much."""
NEARLY_ALL = 0.95
TYPICAL_PERCENT = 80


def heads_title(part: Part) -> str:
    added, rows = part["per_head"], part["rows"]
    most = max(row["installed"] for row in rows)
    alone = next(row["p50_ms"] for row in rows if row["installed"] == row["asked"] == 1)
    if added["p50_ms"] * (most - 1) < UNNOTICED * alone:
        latency = f"{most} heads answer as soon as one does; each adds"
    else:
        latency = f"Each head adds {added['p50_ms']:.2f} ms and"
    return f"{latency} {_processor_time(added['cpu_us'])} to an image; {_unasked_words(part['unasked'])}"


def _processor_time(cpu_us: float) -> str:
    if cpu_us <= 0:
        return "no processor time"
    amount = f"{cpu_us:.0f} µs" if cpu_us < 1000 else f"{cpu_us / 1000:.1f} ms"
    return f"{amount} of processor time"


def _unasked_words(unasked: Part) -> str:
    more = max(unasked["p50_ms_ratio"], unasked["cpu_ms_ratio"]) - 1
    installed = f"of {unasked['installed']} heads the {unasked['installed'] - 1} that nobody asks for cost"
    return f"{installed} nothing" if more < UNNOTICED else f"{installed} {_percent(more)}"


def sizes_title(part: Part) -> str:
    rows = part["rows"]
    first, last = rows[0], rows[-1]
    dearer = [row["megapixels"] for row in rows if row["preprocess_cpu_ms"] > row["encoder_cpu_ms"]]
    if not dearer:
        crossing = "the encoder costs more than decoding at every size"
    elif len(dearer) == len(rows):
        crossing = "decoding costs more than the encoder at every size"
    else:
        crossing = f"decoding costs more than the encoder from {min(dearer):g} megapixels on"
    speeds = f"{_rate(first)} images/s at {first['megapixels']:g} megapixels, {_rate(last)} at {last['megapixels']:g}"
    return f"{speeds} (decode: {part['decode']}); {crossing}"


def _rate(row: Part) -> str:
    return f"{row['images_per_s']:.0f}" if row["images_per_s"] >= 10 else f"{row['images_per_s']:.1f}"


def rates_title(part: Part) -> str:
    row = min(part["rows"], key=lambda each: abs(each["percent"] - TYPICAL_PERCENT))
    load = f"At {row['percent']} % of {part['capacity_per_s']:.0f} images/s"
    if row["p50_ms"] is None:
        return f"{load} nothing is answered"
    latencies = f"half the answers take up to {row['p50_ms']:.0f} ms, 99 % up to {row['p99_ms']:.0f} ms"
    return f"{load} {latencies}; {_refusals(part['rows'])}"


def _refusals(rows: Sequence[Part]) -> str:
    refusing = [row for row in rows if row["refused_ratio"] > 0]
    if not refusing:
        return f"none is refused up to {max(row['percent'] for row in rows)} %"
    first, last = refusing[0], refusing[-1]
    if first is last:
        return f"{_percent(last['refused_ratio'], 1)} are refused at {last['percent']} %"
    share = _percent(last["refused_ratio"], 1)
    return f"refusals begin at {first['percent']} % and are {share} at {last['percent']} %"


def batches_title(part: Part) -> str:
    by_request, by_concurrency = part["by_request"], part["by_concurrency"]
    best = max(row["images_per_s"] for row in by_request)
    single = next(row["images_per_s"] for row in by_request if row["images_per_request"] == 1)
    most = max(row["images_per_s"] for row in by_concurrency)
    enough = next(row for row in by_concurrency if row["images_per_s"] >= NEARLY_ALL * most)
    return (
        f"One image a request brings {_percent(single / best)} of the best rate; {enough['concurrency']} in flight are "
        f"enough for {_percent(NEARLY_ALL)}, in batches of {enough['encoder_batch']:.1f} at the encoder"
    )


def _percent(ratio: float, digits: int = 0) -> str:
    return f"{100 * ratio:.{digits}f} %"
