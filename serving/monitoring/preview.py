"""Draws the Grafana dashboard without Grafana: every panel's expressions through a Prometheus, as one HTML file.

    python -m serving.monitoring.preview --prometheus http://127.0.0.1:9090 --out dashboard.html

For a look at the dashboard where no Grafana is, and to see that no panel's expression fails or stays empty. It reads
the JSON that Grafana reads; the drawing is plainer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from html import escape
from pathlib import Path
from typing import Any

from common.manifest import write_atomically
from recipes.errors import run_step
from serving.monitoring.charts import CHARTS
from serving.monitoring.queries import Prometheus, Window, variables_of

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "clipsieve.json"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #6a7284; --card: #fff; --page: #f2f3f5; --line: #dde0e6 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ec; --soft: #9aa3b5; --card: #1b1e25; --page: #111318; --line: #323743 } }
body { margin: 0; padding: 12px; background: var(--page); color: var(--ink); font: 13px/1.4 system-ui, sans-serif }
main { display: grid; grid-template-columns: repeat(24, 1fr); gap: 8px }
h1 { font-size: 17px; margin: 0 0 8px } h2 { font-size: 14px; margin: 10px 0 0; grid-column: 1 / -1 }
section { background: var(--card); border: 1px solid var(--line); border-radius: 4px; padding: 8px; overflow: auto }
section { max-height: 400px }
h3 { font-size: 13px; margin: 0 0 4px } p { margin: 0; color: var(--soft) }
svg { width: 100%; display: block } text { font-size: 10px; fill: var(--soft) } .grid { stroke: var(--line) }
ul { margin: 4px 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px }
i { display: inline-block; width: 10px; height: 3px; margin-right: 5px; vertical-align: middle }
table { border-collapse: collapse; width: 100%; font-size: 12px } th { text-align: right; font-weight: 400 }
.bars td, .bars th { padding: 1px 4px; white-space: nowrap } .bar { width: 70% }
.bar div { background: #3274d9; height: 9px }
.tile { color: #fff; padding: 6px 10px; margin-bottom: 4px; overflow-wrap: anywhere } .tile b { margin-right: 10px }
.empty { color: var(--soft); padding: 30px 0; text-align: center }
"""


def layout(dashboard: dict[str, Any], variables: dict[str, list[str]]) -> list[tuple[dict, dict[str, list[str]]]]:
    """List every panel and row in order, with the variables it sees: a repeated row comes once for each value."""
    result: list[tuple[dict, dict[str, list[str]]]] = []
    for row in rows_of(dashboard["panels"]):
        name = row[0].get("repeat")
        choices = [variables | {name: [value]} for value in variables[name]] if name else [variables]
        result += [(panel, choice) for choice in choices for panel in row]
    return result


def rows_of(panels: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group the panels: each row's own panel with those below it."""
    rows: list[list[dict[str, Any]]] = []
    for panel in panels:
        if panel["type"] == "row":
            rows.append([])
        rows[-1].append(panel)
    return rows


def drawn(panel: dict[str, Any], variables: dict[str, list[str]], prometheus: Prometheus, window: Window) -> str:
    """The panel as HTML."""
    if panel["type"] == "row":
        title = panel["title"]
        for name, values in variables.items():
            title = title.replace(f"${name}", ", ".join(values))
        return f"<h2>{escape(title)}</h2>"
    series = [one for target in panel["targets"] for one in prometheus.series(target, variables, window)]
    chart = CHARTS[panel["type"]](panel, series, window) if series else "<div class=empty>no data</div>"
    note = f"<p>{escape(panel['description'])}</p>" if panel["description"] else ""
    span = f"grid-column: span {panel['gridPos']['w']}"
    return f'<section style="{span}"><h3>{escape(panel["title"])}</h3>{note}{chart}</section>'


def page(dashboard: dict[str, Any], prometheus: Prometheus, window: Window) -> str:
    """The dashboard as one self-contained HTML document.

    Raises:
        PrometheusError: no answer, or an expression that Prometheus refuses.
    """
    variables = variables_of(dashboard, prometheus)
    parts = [drawn(panel, seen, prometheus, window) for panel, seen in layout(dashboard, variables)]
    title = escape(dashboard["title"])
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1><main>{''.join(parts)}</main></html>\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serving.monitoring.preview", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of the Prometheus")
    parser.add_argument("--minutes", type=float, default=60, help="how much time to show")
    parser.add_argument("--step-s", type=float, default=15, help="seconds between points")
    parser.add_argument("--rate-interval-s", type=float, default=60, help="at least four scrape intervals")
    parser.add_argument("--out", type=Path, required=True, help="the HTML file")
    arguments = parser.parse_args(argv)
    window = Window(time.time(), 60 * arguments.minutes, arguments.step_s, arguments.rate_interval_s)
    html = page(json.loads(DASHBOARD.read_text()), Prometheus(arguments.prometheus), window)
    write_atomically(arguments.out, html.encode())
    print(f"serving.monitoring.preview: {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_step("serving.monitoring.preview", main))
