"""The pictures of the page, as SVG files that are the same whenever the figures are."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.growth import pictures as growth_pictures
from benchmarks.growth.titles import batches_title, heads_title, rates_title, sizes_title
from benchmarks.results.markdown import number
from benchmarks.results.stored import Result

GROWTH_TITLES = {"heads": heads_title, "sizes": sizes_title, "rates": rates_title, "batches": batches_title}
OURS, OTHERS, SECOND, LIMIT = "#1f6feb", "#a8b1bb", "#e07b39", "#24292f"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "clipsieve",
    "svg.fonttype": "none",  # letters stay letters: small, and read aloud
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def captions(result: Result) -> dict[str, str]:
    """What each of the pictures that `svgs` draws shows, by file name."""
    name = result["benchmark"]
    if name == "growth":
        titles = {part: title(result[part]) for part, title in GROWTH_TITLES.items() if part in result}
        return {f"growth-{part}.svg": title for part, title in titles.items()}
    return {f"{name}.svg": CAPTIONS[name]} if name in FIGURES else {}


def svgs(result: Result) -> dict[str, bytes]:
    """File names and contents."""
    if result["benchmark"] == "growth":
        return growth_pictures.svgs(result)
    with rc_context(_STYLE):
        return {name: _svg(FIGURES[result["benchmark"]](result)) for name in captions(result)}


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
    figure = _figure(9, 0.9 + 0.32 * len(shown))
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
    """From above, with their figures; what was not measured has none."""
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
    figure = _figure(6.4, 3.2)
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


# ---- a server under load ----


def overload(result: Result) -> Figure:
    """Of each round's offered requests what became of them, and what interactive requests waited."""
    rounds = result["rounds"]
    figure = _figure(8, 3)
    left, right = figure.subplots(1, 2)
    bottom = np.zeros(len(rounds))
    at = np.arange(1, len(rounds) + 1)
    for status, color in zip(_statuses(rounds), (OURS, OTHERS, SECOND, LIMIT, LIMIT), strict=False):
        counts = np.array([row["statuses"].get(status, 0) for row in rounds])
        left.bar(at, counts, 0.6, bottom=bottom, color=color, label=_STATUS.get(status, status))
        bottom += counts
    left.set(xlabel="round", ylabel="requests offered")
    left.set_xticks(at)
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    beside = [each for row in rounds for each in row.get("interactive", [])]
    _medians(right, beside, "beside", {"p50_ms": "p50", "p99_ms": "p99"})
    right.set(xlabel="interactive requests beside", ylabel="latency, ms (medians of rounds)")
    return figure


_STATUS = {"OK": "scored", "UNAVAILABLE": "refused"}


def _statuses(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {status for row in rounds for status in row["statuses"]}
    return [name for name in _STATUS if name in found] + sorted(found - set(_STATUS))


def _medians(axes: Axes, rows: Sequence[Mapping[str, Any]], group: str, keys: Mapping[str, str]) -> None:
    """Groups of bars, one bar for each key; the median of a group's rows that have it."""
    groups = list(dict.fromkeys(row[group] for row in rows))
    for place, ((key, label), color) in enumerate(zip(keys.items(), (OURS, OTHERS), strict=True)):
        values = [[row[key] for row in rows if row[group] == name and row[key] is not None] for name in groups]
        heights = [float(np.median(each)) if each else 0.0 for each in values]
        bars = axes.bar(np.arange(len(groups)) + 0.4 * place - 0.2, heights, 0.38, label=label, color=color)
        axes.bar_label(bars, [number(height) for height in heights], fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(keys))


def soak(result: Result) -> Figure:
    """Latency above, memory of each process below."""
    samples = result["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    figure = _figure(8, 4.6)
    above, below = figure.subplots(2, 1, sharex=True)
    for key, color in (("p50_ms", OURS), ("p99_ms", SECOND)):
        above.plot(minutes, _column(samples, key), label=key.removesuffix("_ms"), color=color, linewidth=1)
    above.set(ylabel="latency, ms", ylim=(0, None))
    for name in samples[0]["resident_mib"]:
        below.plot(minutes, _column([sample["resident_mib"] for sample in samples], name), label=name, linewidth=1)
    below.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    for axes in (above, below):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axes.grid(alpha=0.3)
    return figure


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(N,) float64, NaN where a row has none: the line has a gap there."""
    return np.array([row.get(key) for row in rows], dtype=np.float64)


# ---- precision ----


def precision(result: Result) -> Figure:
    """Speed and loss of int8 on each instruction set, a panel an encoder."""
    encoders = result["encoders"]
    figure = _figure(8, 0.8 + sum(0.5 + 0.32 * len(each["instruction_sets"]) for each in encoders))
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


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "peers": peers,
    "preprocessing": preprocessing,
    "overload": overload,
    "soak": soak,
    "precision": precision,
}
CAPTIONS = {
    "peers": "images/s, p99 at equal load and processor time of each peer",
    "preprocessing": "speed relative to open_clip's transform, and images/s of one core, at each size of picture",
    "overload": "what became of the offered requests, and the latency of interactive ones",
    "soak": "latency and memory over time",
    "precision": "speed and loss of int8 on each instruction set",
}


def _figure(width: float, height: float) -> Figure:
    """In inches, white whatever the page is."""
    pads = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=pads, facecolor="white")


def _svg(figure: Figure) -> bytes:
    """Without the date and the version of matplotlib."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"
