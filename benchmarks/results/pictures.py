"""The pictures of the page, as SVG files that are the same whenever the figures are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.growth import pictures as growth_pictures
from benchmarks.growth.titles import batches_title, heads_title, rates_title, sizes_title
from benchmarks.results.stored import Result, stored_name
from benchmarks.tables import number
from common.charts import empty_figure, svg_of
from tuning.candidates import Setting
from tuning.choice import Point
from tuning.curve import curves_svg

GROWTH_TITLES = {"heads": heads_title, "sizes": sizes_title, "rates": rates_title, "batches": batches_title}
OURS, OTHERS, SECOND, LIMIT = "#1f6feb", "#a8b1bb", "#e07b39", "#24292f"


def captions(result: Result) -> dict[str, str]:
    """Captions of the pictures that `svgs` draws, by file name."""
    benchmark, name = result["benchmark"], stored_name(result)
    if benchmark == "growth":
        titles = {part: title(result[part]) for part, title in GROWTH_TITLES.items() if part in result}
        return {f"{name}-{part}.svg": title for part, title in titles.items()}
    return {f"{name}.svg": CAPTIONS[benchmark]} if benchmark in CAPTIONS else {}


def svgs(result: Result) -> dict[str, bytes]:
    """File names and contents."""
    if result["benchmark"] == "growth":
        return growth_pictures.svgs(result, stored_name(result))
    if result["benchmark"] == "tune":
        return {name: tune(result) for name in captions(result)}
    return {name: svg_of(lambda: FIGURES[result["benchmark"]](result)) for name in captions(result)}


# ---- peers ----

_PEER_PANELS = {
    "images_per_s": "images/s (more is better)",
    "p99_loaded_ms": "p99 at equal load, ms (less is better)",
    "cpu_ms": "CPU an image, ms (less is better)",
}


def peers(result: Result) -> Figure:
    """A bar for each peer, ours in colour; the limit is a line."""
    rows = result["peers"]
    limit = next((row for row in rows if row["name"] == "limit"), {})
    shown = [row for row in rows if row["name"] != "limit"]
    figure = empty_figure(9, 0.9 + 0.32 * len(shown))
    panels = figure.subplots(1, len(_PEER_PANELS), sharey=True)
    for axes, (key, label) in zip(panels, _PEER_PANELS.items(), strict=True):
        values = [(row["name"], row.get(key)) for row in shown]
        _bars(axes, values, [OURS if name.startswith("clipsieve") else OTHERS for name, _ in values])
        axes.set_xlabel(label)
        if limit.get(key) is not None:
            axes.axvline(limit[key], color=LIMIT, linestyle="--", linewidth=1, label="one process, no server, fp32")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _bars(axes: Axes, values: Sequence[tuple[str, float | None]], colors: Sequence[str]) -> None:
    """Draw bars from the top down, with their figures; a value that was not measured has no bar."""
    lengths = [value or 0.0 for _, value in values]
    axes.barh(range(len(values)), lengths, color=colors, height=0.65)
    axes.set_yticks(range(len(values)), [name for name, _ in values])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * max(lengths, default=0) or 1)
    for at, (_, value) in enumerate(values):
        text = "not measured" if value is None else number(value)
        axes.annotate(text, (value or 0, at), (3, 0), textcoords="offset points", va="center", fontsize=8)


# ---- preprocessing ----


def preprocessing(result: Result) -> Figure:
    """Bars are speeds relative to open_clip's, one group for each size of picture; their labels are images/s."""
    sizes, names = result["sizes"], ("open_clip", "exact", "scaled")
    figure = empty_figure(6.4, 3.2)
    axes = figure.subplots()
    for place, (name, color) in enumerate(zip(names, (OTHERS, OURS, SECOND), strict=True)):
        rows = [size["methods"][name] for size in sizes]
        heights = [row["relative"] for row in rows]
        bars = axes.bar(np.arange(len(sizes)) + 0.27 * (place - 1), heights, 0.25, label=name, color=color)
        axes.bar_label(bars, [f"{number(row['images_per_s'])}/s" for row in rows], fontsize=8)
    axes.set_xticks(range(len(sizes)), [f"{size['megapixels']:g} megapixels" for size in sizes])
    axes.axhline(1, color=LIMIT, linestyle="--", linewidth=0.7)
    axes.set_ylabel("speed on one core, × open_clip's transform")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


# ---- precision ----


def precision(result: Result) -> Figure:
    """Speed and loss of int8 on each instruction set, a panel an encoder."""
    encoders = result["encoders"]
    figure = empty_figure(8, 0.8 + sum(0.5 + 0.32 * len(each["instruction_sets"]) for each in encoders))
    panels = figure.subplots(len(encoders), 2, squeeze=False)
    for (left, right), encoder in zip(panels, encoders, strict=True):
        sets = encoder["instruction_sets"]
        colors = [OURS] * len(sets)
        _bars(left, [(name, methods["int8"]["relative"]) for name, methods in sets.items()], colors)
        left.set_title(encoder["model"], fontsize=9, loc="left")
        _bars(right, [(name, max(0.0, 1 - methods["int8"]["cosine_min"])) for name, methods in sets.items()], colors)
        right.tick_params(labelleft=False)
    panels[-1][0].set_xlabel("int8 ÷ fp32 images/s")
    panels[-1][1].set_xlabel("1 - cosine to fp32, the worst picture")
    return figure


# ---- tune ----


def tune(result: Result) -> bytes:
    """The picture of the sweep, as `python -m tuning` draws it."""
    measured = {Setting(**row["setting"]): [Point(**point) for point in row["curve"]] for row in result["settings"]}
    chosen, own = Setting(**result["chosen"]), Setting(**result["own"])
    return curves_svg(measured, chosen, own, f"{result['recipe']}: {result['encoder']}")


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "peers": peers,
    "preprocessing": preprocessing,
    "precision": precision,
}
CAPTIONS = {
    "tune": "latency against images/s of each setting, a point for each number of requests in flight",
    "peers": "images/s, p99 at equal load and processor time of each peer",
    "preprocessing": "speed relative to open_clip's transform, and images/s of one core, at each size of picture",
    "precision": "speed and loss of int8 on each instruction set",
}
