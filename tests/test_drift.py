"""serving.drift: PSI and KS against a reference, snapshots, and messages about metrics it cannot judge."""

from __future__ import annotations

import http.server
import json
import math
import threading

import numpy as np
import pytest

from common.score_edges import PROBABILITY_EDGES
from recipes.errors import run_step
from serving.drift import (
    compare,
    drifts,
    histograms,
    kolmogorov_smirnov,
    main,
    population_stability_index,
    served_since,
)

EDGES = np.array([*PROBABILITY_EDGES, math.inf])


def cumulative(scores: np.ndarray) -> np.ndarray:
    return (scores[:, None] <= EDGES).sum(axis=0)


def le(edge: float) -> str:
    return "+Inf" if edge == math.inf else f"{edge:g}"


def metrics_text(scores: np.ndarray, trained: np.ndarray | None, head: str = "nsfw", label: str = "nsfw") -> str:
    """The metrics of a server that gave these scores, with a head that was trained on others."""
    lines = ["# HELP clipsieve_score_bucket Scores at or below le", "# TYPE clipsieve_score_bucket counter"]
    lines += ["nv_cpu_utilization 0.5", 'clipsieve_images_total{model="preprocess"} 12']
    served = cumulative(scores)
    for edge, count in zip(EDGES, served, strict=True):
        lines.append(f'clipsieve_score_bucket{{head="{head}",label="{label}",le="{le(edge)}"}} {count}')
    if trained is not None:
        lower = -math.inf
        for edge, ratio in zip(EDGES, cumulative(trained) / len(trained), strict=True):
            gt = "-Inf" if lower == -math.inf else le(lower)
            labels = f'gt="{gt}",head="{head}",label="{label}",le="{le(edge)}"'
            lines.append(f"clipsieve_training_score_ratio{{{labels}}} {ratio}")
            lower = edge
    return "\n".join(lines) + "\n"


def beta(a: float, b: float, count: int = 5000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(a, b, count)


def reference_psi(served: np.ndarray, trained: np.ndarray) -> float:
    """PSI by numpy's histogram; its bins are closed below, where no score here lies."""
    bins = [-np.inf, *PROBABILITY_EDGES, np.inf]
    a, b = (np.maximum(np.histogram(scores, bins)[0] / len(scores), 1e-4) for scores in (served, trained))
    return float(np.sum(a * np.log(a / b)) + np.sum(b * np.log(b / a)))


@pytest.mark.parametrize(("a", "b"), [(2, 5), (2.2, 5), (0.5, 0.5), (5, 2), (0.1, 3)])
def test_psi_and_ks_equal_a_reference(a, b):
    served, trained = beta(a, b, seed=1), beta(2, 5)
    (row,) = drifts(metrics_text(served, trained), None, 1000)
    assert row.psi == pytest.approx(reference_psi(served, trained), rel=1e-9)
    at_edges = [abs((served <= edge).mean() - (trained <= edge).mean()) for edge in PROBABILITY_EDGES]
    assert row.ks == pytest.approx(max(at_edges))


@pytest.mark.parametrize(
    ("a", "b", "verdict"), [(2, 5, "stable"), (2.7, 5, "shifted"), (4, 5, "drifted"), (5, 1, "drifted")]
)
def test_verdicts_by_the_usual_limits(a, b, verdict):
    (row,) = drifts(metrics_text(beta(a, b, seed=1), beta(2, 5)), None, 1000)
    assert row.verdict == verdict, row


def test_binned_ks_is_at_most_that_of_the_scores():
    served, trained = beta(2, 4, seed=1), beta(2, 5)
    (row,) = drifts(metrics_text(served, trained), None, 1000)
    both = np.sort(np.concatenate([served, trained]))
    exact = np.abs(
        np.searchsorted(np.sort(served), both, "right") / len(served)
        - np.searchsorted(np.sort(trained), both, "right") / len(trained)
    ).max()
    assert row.ks is not None
    assert 0.8 * exact < row.ks <= exact


def test_equal_shares_have_no_drift_and_empty_bins_are_finite():
    same = np.array([0.25, 0.75, 0.0])
    assert population_stability_index(same, same) == 0
    assert population_stability_index(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(
        2 * 0.9999 * math.log(1e4)
    )
    assert kolmogorov_smirnov(np.array([0.2, 1]), np.array([0.5, 1])) == pytest.approx(0.3)


def test_the_difference_of_two_snapshots_is_what_came_between():
    trained, monday, tuesday = beta(2, 5), beta(2, 5, seed=1), beta(5, 2, seed=2)
    before = metrics_text(monday, trained)
    after = metrics_text(np.concatenate([monday, tuesday]), trained)
    assert drifts(after, before, 1000) == drifts(metrics_text(tuesday, trained), None, 1000)
    assert [row.verdict for row in drifts(after, before, 1000)] == ["drifted"]
    assert drifts(before, before, 1000)[0].verdict == "too few scores"


def test_a_server_started_anew_is_counted_from_its_start():
    now, before = {("nsfw", "nsfw"): {0.5: 3.0, math.inf: 5.0}}, {("nsfw", "nsfw"): {0.5: 10.0, math.inf: 20.0}}
    assert served_since(now, before) == now


def test_a_head_of_unknown_training_is_compared_with_its_own_past():
    monday, tuesday = beta(2, 5, seed=1), beta(5, 2, seed=2)
    before, after = metrics_text(monday, None), metrics_text(np.concatenate([monday, tuesday]), None)
    (row,) = drifts(after, before, 1000, before)
    assert row.psi == pytest.approx(reference_psi(tuesday, monday))
    assert drifts(before, None, 1000, before)[0].psi == 0
    assert drifts(after, None, 1000, metrics_text(np.zeros(0), None))[0].verdict == "nothing to compare with"


def test_few_scores_have_figures_but_no_verdict():
    (row,) = drifts(metrics_text(beta(5, 1, 50), beta(2, 5)), None, 1000)
    assert row.verdict == "too few scores"
    assert row.psi is not None
    (row,) = drifts(metrics_text(np.zeros(0), beta(2, 5)), None, 1000)
    assert (row.scores, row.psi) == (0, None)


def test_a_head_of_unknown_training_has_no_verdict():
    text = metrics_text(beta(2, 5), None)
    assert drifts(text, None, 1000)[0].verdict == "nothing to compare with"
    stale = metrics_text(beta(2, 5), beta(2, 5)).replace("} 1.0\n", "} Nan\n")
    assert drifts(stale, None, 1000)[0].verdict == "nothing to compare with"


def test_heads_and_labels_are_kept_apart_and_names_unescaped():
    text = metrics_text(beta(2, 5), None, "a", 'say \\"no\\"') + metrics_text(beta(5, 2), None, "b", "back\\\\slash")
    assert list(histograms(text, "clipsieve_score_bucket")) == [("a", 'say "no"'), ("b", "back\\slash")]


def test_other_edges_are_refused():
    served, trained = {("a", "a"): {0.5: 1.0, math.inf: 2.0}}, {("a", "a"): {0.4: 0.5, math.inf: 1.0}}
    with pytest.raises(
        Exception, match=r"counted at \[0.5, inf\], those to compare with at \[0.4, inf\]; .* make engines"
    ):
        compare(served, trained, 1)


# ---- the command ----


def test_status_table_and_json_of_a_file(tmp_path, capsys):
    stable, drifted = tmp_path / "stable.txt", tmp_path / "drifted.txt"
    stable.write_text(metrics_text(beta(2, 5, seed=1), beta(2, 5)))
    drifted.write_text(metrics_text(beta(5, 2), beta(2, 5)))
    assert run_step("serving.drift", lambda: main(["--metrics", str(stable)])) == 0
    assert "nsfw, nsfw" in capsys.readouterr().out
    assert run_step("serving.drift", lambda: main(["--metrics", str(drifted), "--json"])) == 3
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["head"], row["scores"], row["verdict"]) == ("nsfw", 5000, "drifted")


def test_an_address_and_a_saved_snapshot(tmp_path, capsys):
    text = metrics_text(beta(2, 5, seed=1), beta(2, 5))

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, saved = f"http://127.0.0.1:{server.server_port}/metrics", tmp_path / "saved.txt"
        assert run_step("serving.drift", lambda: main(["--metrics", url, "--save", str(saved)])) == 0
        assert saved.read_text() == text
        capsys.readouterr()
        assert run_step("serving.drift", lambda: main(["--metrics", url, "--since", str(saved)])) == 0
        assert "too few scores" in capsys.readouterr().out
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot read metrics from"), ("nv_cpu_utilization 0.5\n", "serving: {watch: true}")],
)
def test_metrics_that_cannot_be_judged(tmp_path, capsys, text, words):
    path, kept = tmp_path / "metrics.txt", tmp_path / "saved.txt"
    kept.write_text("earlier")
    if text is not None:
        path.write_text(text)
    assert run_step("serving.drift", lambda: main(["--metrics", str(path), "--save", str(kept)])) == 1
    assert words in capsys.readouterr().err
    assert kept.read_text() == "earlier"
