"""Series as SVG: lines over time, bars, tiles and tables. Pure; `serving.monitoring.preview` puts them on a page."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from serving.monitoring.queries import Series, Window

COLORS = ("#3274d9", "#e0752d", "#3f9c4a", "#b8408f", "#8f7a00", "#7a56c2", "#0e8f9c", "#c4302b")
STEP_COLORS = {"green": "#3f9c4a", "orange": "#e0752d", "red": "#c4302b"}
HEIGHT = 190  # of a chart, in its coordinates
COLUMN = 58  # width of one of the grid's 24 columns, likewise
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 22
SUFFIXES = {"ops": "/s", "reqps": "/s", "ms": " ms"}


def shown(value: float, unit: str) -> str:
    """A value with its unit, in three digits: `12.4 %`, `1.3 MB`, `250 /s`."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    scaled, prefix = value, ""
    if unit in ("bytes", "short"):
        for larger in ("k", "M", "G"):
            if abs(scaled) < 1000:
                break
            scaled, prefix = scaled / 1000, larger
    suffix = f" {prefix}B" if unit == "bytes" else f"{prefix}{SUFFIXES.get(unit, '')}"
    return f"{scaled:.3g}{suffix}" if abs(scaled) < 1000 else f"{scaled:.0f}{suffix}"


def ticks(top: float) -> list[float]:
    """Round values from 0 to about `top`, four or five of them."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def stacked(series: Sequence[Series]) -> list[Series]:
    """Stack each series on those before it; a point that one lacks counts as 0."""
    below: dict[float, float] = {}
    result = []
    for one in series:
        points = [(at, value + below.get(at, 0.0)) for at, value in one.points]
        below |= dict(points)
        result.append(Series(one.legend, points))
    return result


def timeseries(panel: dict[str, Any], series: Sequence[Series], window: Window) -> str:
    """Lines over the window, with axes and a legend below."""
    defaults = panel["fieldConfig"]["defaults"]
    drawn = stacked(series) if defaults["custom"]["stacking"]["mode"] == "normal" else list(series)
    marks = ticks(max(value for one in drawn for _, value in one.points))
    width = COLUMN * panel["gridPos"]["w"]
    parts = [axis(marks, defaults["unit"], width), clock(window, width)]
    if defaults["custom"]["thresholdsStyle"]["mode"] != "off":
        parts += [threshold(step, marks[-1], width) for step in defaults["thresholds"]["steps"]]
    parts += [line(one, color, window, marks[-1], width) for one, color in zip(drawn, colors(), strict=False)]
    chart = f'<svg viewBox="0 0 {width} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return chart + legend_of(series, defaults["unit"])


def colors() -> list[str]:
    return [color for _ in range(10) for color in COLORS]


def height_of(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def line(series: Series, color: str, window: Window, top: float, width: int) -> str:
    inner = width - LEFT - RIGHT
    points = [
        (LEFT + inner * (at - window.start) / window.length_s, height_of(value, top)) for at, value in series.points
    ]
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2" fill="{color}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def axis(marks: Sequence[float], unit: str, width: int) -> str:
    parts = []
    for mark in marks:
        y = height_of(mark, marks[-1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{shown(mark, unit)}</text>')
    return "".join(parts)


def clock(window: Window, width: int) -> str:
    """Times of day (UTC) below the chart, as many as have room."""
    parts, last = [], width // 110
    for index in range(last + 1):
        x = LEFT + (width - LEFT - RIGHT) * index / last
        at = time.strftime("%H:%M:%S", time.gmtime(window.start + window.length_s * index / last))
        anchor = {0: "start", last: "end"}.get(index, "middle")
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{at}</text>')
    return "".join(parts)


def threshold(step: dict[str, Any], top: float, width: int) -> str:
    if step["value"] is None or step["value"] > top:
        return ""
    y = height_of(step["value"], top)
    place = f'x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {place} stroke="{STEP_COLORS[step["color"]]}" stroke-dasharray="6 4"/>'


def legend_of(series: Sequence[Series], unit: str) -> str:
    items = [
        f'<li><i style="background:{color}"></i>{escape(one.legend)} <b>{shown(one.last, unit)}</b></li>'
        for one, color in zip(series, colors(), strict=False)
    ]
    return f"<ul>{''.join(items)}</ul>"


def bargauge(panel: dict[str, Any], series: Sequence[Series], window: Window) -> str:
    """A horizontal bar for each series' last value."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    top = panel["fieldConfig"]["defaults"]["max"]
    rows = [
        f"<tr><th>{escape(one.legend)}</th>"
        f"<td class=bar><div style='width:{100 * min(max(one.last / top, 0), 1):.1f}%'></div></td>"
        f"<td>{shown(one.last, unit)}</td></tr>"
        for one in series
    ]
    return f"<table class=bars>{''.join(rows)}</table>"


def stat(panel: dict[str, Any], series: Sequence[Series], window: Window) -> str:
    """A coloured tile for each series' last value."""
    defaults = panel["fieldConfig"]["defaults"]
    tiles = [
        f'<div class=tile style="background:{step_color(defaults["thresholds"]["steps"], one.last)}">'
        f"<b>{shown(one.last, defaults['unit'])}</b>{escape(one.legend)}</div>"
        for one in series
    ]
    return "".join(tiles)


def step_color(steps: Sequence[dict[str, Any]], value: float) -> str:
    passed = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return STEP_COLORS[passed[-1]]


def table(panel: dict[str, Any], series: Sequence[Series], window: Window) -> str:
    return "<table>" + "".join(f"<tr><td>{escape(one.legend)}</td></tr>" for one in series) + "</table>"


CHARTS = {"timeseries": timeseries, "bargauge": bargauge, "stat": stat, "table": table}
