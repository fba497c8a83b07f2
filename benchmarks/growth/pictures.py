"""The result as SVG files."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.growth.titles import batches_title, heads_title, rates_title, sizes_title
from common.charts import empty_figure, svg_of

WIDTH, HEIGHT = 8.0, 3.8  # inches of one row of panels
TITLE_CHARACTERS = 100
STYLE = {"axes.grid": True, "grid.color": "#e5e7eb", "lines.marker": "o", "lines.markersize": 4}
COLOURS = {"first": "#1d4ed8", "second": "#c2410c", "third": "#047857"}
NOTHING = math.nan

Rows = Sequence[Mapping[str, Any]]


def svgs(result: Mapping[str, Any], name: str) -> dict[str, bytes]:
    """`<name>-<part>.svg` for each part that was measured, by file name."""
    drawers = {"heads": draw_heads, "sizes": draw_sizes, "rates": draw_rates, "batches": draw_batches}
    return {
        f"{name}-{part}.svg": svg_of(functools.partial(drawer, result[part]), STYLE)
        for part, drawer in drawers.items()
        if part in result
    }


def draw_heads(part: Mapping[str, Any]) -> Figure:
    figure, panels = _figure(heads_title(part), 1)
    all_heads = [row for row in part["rows"] if row["asked"] == row["installed"]]
    one_head = [row for row in part["rows"] if row["asked"] < row["installed"]]
    counts = _values(all_heads, "installed")
    for axes, key, label in (
        (panels[0], "p50_ms", "median latency alone, ms"),
        (panels[1], "rest_cpu_ms", "CPU of heads and server, ms an image"),
    ):
        axes.plot(counts, _values(all_heads, key), color=COLOURS["first"], label="all are asked for")
        if one_head:
            style = {"linestyle": "", "marker": "D", "markersize": 6, "color": COLOURS["second"]}
            axes.plot(_values(one_head, "installed"), _values(one_head, key), **style, label="one is asked for")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        _label(axes, "heads installed", label)
    return figure


def draw_sizes(part: Mapping[str, Any]) -> Figure:
    figure, panels = _figure(sizes_title(part), 1)
    rows = part["rows"]
    sizes = _values(rows, "megapixels")
    panels[0].plot(sizes, _values(rows, "images_per_s"), color=COLOURS["first"], label="at the best concurrency")
    _log_y(panels[0])
    _label(panels[0], "megapixels", "images/s")
    for (key, name), colour in zip(
        {"cpu_ms": "altogether", "preprocess_cpu_ms": "decoding", "encoder_cpu_ms": "encoder"}.items(),
        ("third", "second", "first"),
        strict=True,
    ):
        panels[1].plot(sizes, _values(rows, key), color=COLOURS[colour], label=name)
    _log_y(panels[1])
    _label(panels[1], "megapixels", "processor time an image, ms")
    for axes in panels:
        _log_x(axes, sizes)
    return figure


def draw_rates(part: Mapping[str, Any]) -> Figure:
    figure, panels = _figure(rates_title(part), 1)
    rows = part["rows"]
    percents = _values(rows, "percent")
    of_capacity = f"requests/s, % of {part['capacity_per_s']:.0f}"
    for key, colour in {"p99_ms": "second", "p95_ms": "third", "p50_ms": "first"}.items():
        panels[0].plot(percents, _values(rows, key), color=COLOURS[colour], label=key.removesuffix("_ms"))
    _log_y(panels[0])
    _label(panels[0], of_capacity, "latency, ms")
    refused = [100 * value for value in _values(rows, "refused_ratio")]
    panels[1].plot(percents, refused, color=COLOURS["second"], label="refused as UNAVAILABLE")
    panels[1].set_ylim(bottom=0, top=max(1.0, 1.1 * max(refused)))
    _label(panels[1], of_capacity, "requests refused, %")
    for axes in panels:
        axes.set_xticks(percents)
    return figure


def draw_batches(part: Mapping[str, Any]) -> Figure:
    figure, panels = _figure(batches_title(part), 2)
    sizes = _values(part["by_request"], "images_per_request")
    in_flight = _values(part["by_concurrency"], "concurrency")
    by_size, by_flight = f"images a request, {part['in_flight']} in flight", "requests of one image in flight"
    for axes, rows, key, x, x_label, y_label in (
        (panels[0], part["by_request"], "images_per_s", sizes, by_size, "images/s"),
        (panels[1], part["by_concurrency"], "images_per_s", in_flight, by_flight, "images/s"),
        (panels[2], part["by_request"], "p50_ms", sizes, by_size, "median latency of a request, ms"),
        (panels[3], part["by_concurrency"], "encoder_batch", in_flight, by_flight, "images in an encoder's batch"),
    ):
        axes.plot(x, _values(rows, key), color=COLOURS["first"])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _log_x(axes, x)
    return figure


def _figure(title: str, rows: int) -> tuple[Figure, list[Axes]]:
    """Two panels a row under a title."""
    figure = empty_figure(WIDTH, HEIGHT * rows * (1.0 if rows == 1 else 0.85))
    figure.suptitle(textwrap.fill(title, TITLE_CHARACTERS), x=0.015, ha="left", fontsize=10)
    return figure, [figure.add_subplot(rows, 2, place + 1) for place in range(2 * rows)]


def _values(rows: Rows, key: str) -> list[float]:
    """Values of one figure by row; NaN, a gap in the curve, where it was not measured."""
    return [NOTHING if row[key] is None else row[key] for row in rows]


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="lower right")


def _log_x(axes: Axes, values: Sequence[float]) -> None:
    """Give the x axis a logarithmic scale with a tick at each value and no others."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _log_y(axes: Axes) -> None:
    """Give the y axis a logarithmic scale with ticks at 1, 2, 5, 10, …"""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
