"""The picture of a sweep: latency against throughput, a curve over concurrencies for each setting, as SVG."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter

from common.charts import empty_figure, svg_of
from tuning.candidates import Setting
from tuning.choice import Curve

WINNER, OWN = "#c2410c", "#1d4ed8"
OTHERS = ("#6b7280", "#0f766e", "#a16207", "#7c3aed", "#be185d", "#4d7c0f", "#0369a1", "#92400e")
PERCENTILES = {"p50_ms": "median latency (ms)", "p99_ms": "99th percentile of latency (ms)"}


def curves_svg(
    measured: Mapping[Setting, Curve],
    winner: Setting,
    own: Setting,
    title: str,
    p99_budget_ms: float | None = None,
) -> bytes:
    """An SVG file of the sweep.

    Args:
        measured: each setting's medians; those without any are left out.
        own: the setting that the recipe had.
    """
    return svg_of(lambda: _draw(measured, winner, own, title, p99_budget_ms))


def _draw(
    measured: Mapping[Setting, Curve], winner: Setting, own: Setting, title: str, p99_budget_ms: float | None
) -> Figure:
    figure = empty_figure(11, 5 + 0.12 * len(measured))
    panels = figure.subplots(1, len(PERCENTILES), sharex=True)
    shown = {setting: curve for setting, curve in measured.items() if curve}
    for axes, name in zip(panels, PERCENTILES, strict=True):
        _draw_panel(axes, name, shown, winner, own)
    if p99_budget_ms is not None:
        panels[-1].axhline(p99_budget_ms, color="black", linestyle=":", label=f"budget, {p99_budget_ms:g} ms")
    figure.suptitle(title, fontsize="medium")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return figure


def _draw_panel(axes: Axes, name: str, shown: Mapping[Setting, Curve], winner: Setting, own: Setting) -> None:
    others = iter(OTHERS * (1 + len(shown) // len(OTHERS)))
    for setting, curve in shown.items():
        color, suffix = next(others), ""
        if setting == own:
            color, suffix = OWN, " (the recipe's own)"
        if setting == winner:
            color, suffix = WINNER, f"{suffix} (chosen)"
        is_special = setting in (winner, own)
        axes.plot(
            [point.images_per_s for point in curve],
            [getattr(point, name) for point in curve],
            color=color,
            label=f"{setting}{suffix}",
            linewidth=2.5 if setting == winner else 1.5 if is_special else 1,
            marker="o",
            markersize=5 if is_special else 3,
            alpha=1 if is_special else 0.6,
            zorder=3 if is_special else 2,
        )
    _name_concurrencies(axes, name, shown.get(winner, []))
    axes.set_xlabel("throughput (images/s)")
    axes.set_ylabel(PERCENTILES[name])
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.grid(which="both", color="#e5e7eb", linewidth=0.6)


def _name_concurrencies(axes: Axes, name: str, curve: Curve) -> None:
    for point in curve:
        axes.annotate(
            f"{point.concurrency} in flight",
            (point.images_per_s, getattr(point, name)),
            textcoords="offset points",
            xytext=(8, -4),
            ha="left",
            fontsize="small",
            color=WINNER,
        )
