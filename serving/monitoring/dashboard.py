"""Prints the Grafana dashboard of `serving.monitoring.panels`.

    python -m serving.monitoring.dashboard > serving/monitoring/grafana/dashboards/clipsieve.json

The JSON is checked in, because Grafana reads it; a test holds that it is what this prints.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from recipes.errors import run_step
from serving.monitoring.panels import ROWS, Panel, Query, Row

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24  # Grafana's grid
HEIGHT = 8  # of a panel, in its rows
LONGEST_BAR = 0.5  # one scale for all distributions, to compare them; a larger share is written beside its bar


def target(query: Query, letter: str, panel: Panel) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    kind = "heatmap" if query.buckets else "table" if panel.kind == "table" else "time_series"
    return {
        "refId": letter,
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "format": kind,
        "instant": instant,
        "range": not instant,
    }


def steps(panel: Panel) -> list[dict[str, Any]]:
    """The colours of values, each from its value up."""
    if panel.red_below is not None:
        return [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    colors = zip(("orange", "red"), panel.limits, strict=False)
    return [{"color": "green", "value": None}, *({"color": color, "value": value} for color, value in colors)]


def options(panel: Panel) -> dict[str, Any]:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "stat": {"reduceOptions": last, "colorMode": "background", "textMode": "value_and_name"},
        "bargauge": {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic"},
        "table": {"showHeader": True},
    }[panel.kind]


def field_config(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps(panel)}}
    if panel.kind == "timeseries":
        lines = {"mode": "dashed"} if panel.limits else {"mode": "off"}
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 30 if panel.stacked else 5
        defaults |= {"min": 0, "custom": {"thresholdsStyle": lines, "stacking": stacking, "fillOpacity": fill}}
    if panel.kind == "bargauge":
        defaults |= {"min": 0, "max": LONGEST_BAR, "color": {"mode": "fixed", "fixedColor": "blue"}}
    return {"defaults": defaults, "overrides": []}


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    hidden = {"excludeByName": {"Time": True, "Value": True}}
    result: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": field_config(panel),
        "options": options(panel),
        "targets": [target(query, chr(ord("A") + index), panel) for index, query in enumerate(panel.queries)],
    }
    return result | ({"transformations": [{"id": "organize", "options": hidden}]} if panel.kind == "table" else {})


def row_json(row: Row, number: int, y: int) -> list[dict[str, Any]]:
    """The row's own panel, then its panels, which wrap at 24 columns."""
    head: dict[str, Any] = {"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": []}
    head |= {"gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}} | ({"repeat": row.repeat} if row.repeat else {})
    panels, x, below = [head], 0, y + 1
    for index, panel in enumerate(row.panels, start=1):
        if x + panel.width > COLUMNS:
            x, below = 0, below + HEIGHT
        panels.append(panel_json(panel, number + index, x, below))
        x += panel.width
    return panels


def variable(name: str, expression: str) -> dict[str, Any]:
    """A choice of label values, all of them at first."""
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": expression, "refId": name},
        "refresh": 2,  # whenever the time range changes
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    for row in ROWS:
        bottom = max((panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels), default=0)
        panels += row_json(row, len(panels) + 1, bottom)
    return {
        "uid": "clipsieve",
        "title": "clipsieve",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair on all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
                variable("instance", 'label_values(up{job="clipsieve"}, instance)'),
                variable("head", 'label_values(clipsieve_scores_total{instance=~"$instance"}, head)'),
                variable("label", 'label_values(clipsieve_scores_total{head=~"$head"}, label)'),
            ]
        },
        "panels": panels,
    }


def main() -> None:
    print(json.dumps(dashboard(), indent=1))


if __name__ == "__main__":
    sys.exit(run_step("serving.monitoring.dashboard", main))
