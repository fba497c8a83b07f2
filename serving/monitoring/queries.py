"""The dashboard's questions put to a Prometheus: variables filled in, expressions evaluated, legends written.

What Grafana does before it draws, as far as this dashboard asks for it; `serving.monitoring.preview` draws the answers.
"""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
from dataclasses import dataclass
from typing import Any

from recipes.errors import ExpectedError
from serving.no_proxy import urlopen

TIMEOUT_S = 30.0


class PrometheusError(ExpectedError):
    """Prometheus is not there, or refuses an expression."""


@dataclass(frozen=True)
class Series:
    """One line of a panel: its legend and (seconds since 1970, value) points, in time; NaN points are left out."""

    legend: str
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Window:
    """The time that a dashboard shows: its end and length in seconds, a point every `step_s`."""

    end: float
    length_s: float
    step_s: float = 15.0
    rate_interval_s: float = 60.0

    @property
    def start(self) -> float:
        return self.end - self.length_s


class Prometheus:
    """The HTTP API of a Prometheus at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of an API call.

        Raises:
            PrometheusError: no answer, or an error; with what Prometheus says.
        """
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=TIMEOUT_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise PrometheusError(f"{path}: {error.read().decode(errors='replace'):.300}") from error
        except (OSError, ValueError) as error:
            raise PrometheusError(f"{self.url}: {error}; is a Prometheus there?") from error

    def label_values(self, question: str) -> list[str]:
        """Answer Grafana's `label_values(selector, label)`."""
        match = re.fullmatch(r"label_values\((.+), *(\w+)\)", question)
        if match is None:
            raise PrometheusError(f"{question}: not of the form label_values(selector, label)")
        return self.get(f"label/{match[2]}/values", **{"match[]": match[1]})

    def series(self, target: dict[str, Any], variables: dict[str, list[str]], window: Window) -> list[Series]:
        """Series that one target of a panel draws."""
        expression = filled_in(target["expr"], variables, window)
        if target["instant"]:
            result = self.get("query", query=expression, time=window.end)["result"]
            answers = [(answer["metric"], [answer["value"]]) for answer in result]
        else:
            times = {"start": window.start, "end": window.end, "step": window.step_s}
            result = self.get("query_range", query=expression, **times)["result"]
            answers = [(answer["metric"], answer["values"]) for answer in result]
        if target["format"] == "heatmap":
            return bins(answers)
        lines = [Series(legend(target["legendFormat"], labels), finite(values)) for labels, values in answers]
        return sorted((series for series in lines if series.points), key=lambda series: series.legend)


def filled_in(expression: str, variables: dict[str, list[str]], window: Window) -> str:
    """The expression with every `$variable` as a pattern of its values."""
    expression = expression.replace("$__rate_interval", f"{window.rate_interval_s:.0f}s")
    for name, values in variables.items():
        pattern = "|".join(re.escape(value) for value in values).replace("\\", "\\\\")
        expression = expression.replace(f"${name}", pattern)
    return expression


def legend(form: str, labels: dict[str, str]) -> str:
    """`{{model}} p{{quantile}}` with the series' labels; without a form all of them."""
    if not form:
        return ", ".join(f"{name}={value}" for name, value in labels.items())
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), form).strip()


def finite(values: list[list[Any]]) -> list[tuple[float, float]]:
    points = [(float(time), float(value)) for time, value in values]
    return [(time, value) for time, value in points if math.isfinite(value)]


def bins(answers: list[tuple[dict[str, str], list[list[Any]]]]) -> list[Series]:
    """Cumulative buckets, in the order of their edges, each less the one before it."""
    ordered = sorted(answers, key=lambda answer: float(answer[0]["le"]))
    bars, below = [], 0.0
    for labels, values in ordered:
        for time, value in finite(values)[-1:]:
            bars.append(Series(labels["le"], [(time, value - below)]))
            below = value
    return bars


def variables_of(dashboard: dict[str, Any], prometheus: Prometheus) -> dict[str, list[str]]:
    """All values of each variable; a later one may depend on those before it."""
    variables: dict[str, list[str]] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            question = filled_in(variable["query"]["query"], variables, Window(0, 0))
            variables[variable["name"]] = prometheus.label_values(question)
    return variables
