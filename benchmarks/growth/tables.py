"""The result as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import table

Result = Mapping[str, Any]
"""What `python -m benchmarks.growth` prints as JSON."""


def tables(result: Result) -> str:
    """A table for each part that was measured, and a line for each that was not."""
    kinds = {"heads": _heads, "sizes": _sizes, "rates": _rates, "batches": _batches}
    parts = [kind(result[part]) for part, kind in kinds.items() if part in result]
    parts += [f"{part}: not measured: {problem}" for part, problem in result.get("problems", {}).items()]
    return "\n\n".join(parts)


def _heads(part: Result) -> str:
    columns = {
        "installed": "installed",
        "asked": "asked for",
        "images_per_s": "images/s",
        "p50_ms": "p50 ms alone",
        "cpu_ms": "CPU ms/image",
        "rest_cpu_ms": "of the rest",
        "resident_mib": "MiB",
    }
    added, other = part["per_head"], part["unasked"]
    return "\n".join(
        [
            table(part["rows"], columns, aligned=True),
            f"each head adds {added['p50_ms']:.2f} ms, {added['cpu_us']:.0f} µs of CPU an image, "
            f"{added['resident_mib']:.0f} MiB",
            f"one of {other['installed']} heads costs {other['p50_ms_ratio']:.2f}× the latency and "
            f"{other['cpu_ms_ratio']:.2f}× the CPU of the only one",
            f"the rest is all but decoding and encoder; all servers idle: {part['idle_cores']:.2f} cores",
        ]
    )


def _sizes(part: Result) -> str:
    columns = {
        "megapixels": "megapixels",
        "mean_bytes": "bytes",
        "images_per_s": "images/s",
        "p50_ms": "p50 ms alone",
        "preprocess_ms": "decoding ms",
        "encoder_ms": "encoder ms",
        "cpu_ms": "CPU ms/image",
        "preprocess_cpu_ms": "of decoding",
        "encoder_cpu_ms": "of encoder",
    }
    return f"decode: {part['decode']}\n{table(part['rows'], columns, aligned=True)}"


def _rates(part: Result) -> str:
    columns = {
        "percent": "% of capacity",
        "rate_per_s": "requests/s",
        "requests": "requests",
        "p50_ms": "p50 ms",
        "p95_ms": "p95 ms",
        "p99_ms": "p99 ms",
        "refused_percent": "refused %",
        "failed_percent": "failed %",
    }
    rows = [
        {**row, "refused_percent": 100 * row["refused_ratio"], "failed_percent": 100 * row["failed_ratio"]}
        for row in part["rows"]
    ]
    return f"capacity {part['capacity_per_s']:.1f} images/s, of mixed size\n{table(rows, columns, aligned=True)}"


def _batches(part: Result) -> str:
    last = {"images_per_s": "images/s", "p50_ms": "p50 ms", "encoder_batch": "encoder's batch"}
    by_request = table(part["by_request"], {"images_per_request": "a request", "concurrency": "requests"} | last, True)
    by_concurrency = table(part["by_concurrency"], {"concurrency": "in flight"} | last, True)
    return f"{part['in_flight']} images in flight\n{by_request}\none image a request\n{by_concurrency}"
