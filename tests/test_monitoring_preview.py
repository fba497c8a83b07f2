"""serving.monitoring.preview: Grafana's work before it draws, and plain drawings."""

from __future__ import annotations

import pytest

from recipes.errors import run_step
from serving.monitoring import charts, preview, queries
from serving.monitoring.preview import layout
from serving.monitoring.queries import Series, Window


def test_variables_are_filled_in_as_patterns():
    filled = queries.filled_in('rate(a{x=~"$head"}[$__rate_interval])', {"head": ["a.b", "c"]}, Window(0, 0))
    assert filled == r'rate(a{x=~"a\\.b|c"}[60s])'


@pytest.mark.parametrize(
    ("form", "labels", "expected"),
    [
        ("{{model}} p{{quantile}}", {"model": "m", "quantile": "0.5"}, "m p0.5"),
        ("{{none}}", {"model": "m"}, ""),
        ("", {"a": "1", "b": "2"}, "a=1, b=2"),
    ],
)
def test_legends(form, labels, expected):
    assert queries.legend(form, labels) == expected


def test_buckets_are_told_apart_in_the_order_of_their_edges():
    answers = [({"le": edge}, [[0, value]]) for edge, value in [("+Inf", "10"), ("0.5", "4"), ("10", "9")]]
    assert [(one.legend, one.last) for one in queries.bins(answers)] == [("0.5", 4), ("10", 5), ("+Inf", 1)]


def test_points_that_are_no_numbers_are_left_out():
    assert queries.finite([[1, "2"], [2, "NaN"], [3, "+Inf"]]) == [(1, 2)]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.124, "percentunit", "12.4 %"),
        (1_300_000, "bytes", "1.3 MB"),
        (999, "bytes", "999 B"),
        (12_000, "short", "12k"),
        (1234, "ms", "1234 ms"),
        (0, "ops", "0/s"),
    ],
)
def test_values_with_their_units(value, unit, expected):
    assert charts.shown(value, unit) == expected


@pytest.mark.parametrize("top", [1e-6, 0.3, 1, 4.1, 97, 12345])
def test_ticks_are_few_and_reach_the_top(top):
    marks = charts.ticks(top)
    assert 3 <= len(marks) <= 6
    assert marks[-2] < top <= marks[-1] * (1 + 1e-9)


def test_stacked_series_stand_on_one_another():
    low, high = charts.stacked([Series("a", [(0, 1), (1, 2)]), Series("b", [(1, 3)])])
    assert (low.points, high.points) == ([(0, 1), (1, 2)], [(1, 5)])


def test_legends_cannot_be_markup():
    panel = {"fieldConfig": {"defaults": {"unit": "short"}}}
    assert "<b" not in charts.table(panel, [Series("<b>", [(0, 1)])], Window(1, 1))


def test_no_prometheus_is_an_error_that_says_so():
    with pytest.raises(queries.PrometheusError, match="is a Prometheus there"):
        queries.Prometheus("http://127.0.0.1:9").get("query", query="up")


def test_a_repeated_row_comes_once_for_each_value():
    panels = [{"type": "row", "title": "a"}, {"type": "row", "title": "$head", "repeat": "head"}, {"type": "stat"}]
    seen = layout({"panels": panels}, {"head": ["nsfw", "taste"]})
    assert [(panel.get("title"), variables["head"]) for panel, variables in seen] == [
        ("a", ["nsfw", "taste"]),
        ("$head", ["nsfw"]),
        (None, ["nsfw"]),
        ("$head", ["taste"]),
        (None, ["taste"]),
    ]


def test_a_preview_that_fails_leaves_the_old_one(tmp_path, capsys):
    (tmp_path / "page.html").write_text("old")
    arguments = ["--prometheus", "http://127.0.0.1:9", "--out", str(tmp_path / "page.html")]
    assert run_step("serving.monitoring.preview", lambda: preview.main(arguments)) == 1
    assert "is a Prometheus there" in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text() == "old"
