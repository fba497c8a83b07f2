"""Charts as SVG files: the same figures give the same bytes, white on any page, with letters that stay letters."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {  # its keys are literals to a type checker
    "svg.hashsalt": "clipsieve",
    "svg.fonttype": "none",  # small, and read aloud
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def empty_figure(width: float, height: float) -> Figure:
    """A white sheet of so many inches whose parts make room for one another."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1), facecolor="white")


def svg_of(draw: Callable[[], Figure], style: Mapping[Any, Any] | None = None) -> bytes:
    """The figure that `draw` makes, without the date and the version of matplotlib.

    Args:
        style: matplotlib's settings beside STYLE.
    """
    from matplotlib import rc_context  # slow to import

    file = io.BytesIO()
    with rc_context(STYLE), rc_context({**(style or {})}):
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return b"\n".join(line.rstrip() for line in file.getvalue().splitlines()) + b"\n"
