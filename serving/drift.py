"""Do the scores that are served still look like those of the held-out data in training? PSI and KS per head and label.

    python -m serving.drift --metrics http://127.0.0.1:8002/metrics
    python -m serving.drift --metrics http://127.0.0.1:8002/metrics --save monday.txt
    python -m serving.drift --metrics http://127.0.0.1:8002/metrics --since monday.txt --json
    python -m serving.drift --metrics http://127.0.0.1:8002/metrics --since monday.txt --baseline monday.txt

The server exports both distributions when the recipe says `serving: {watch: true}` and training.fit made the head; it
counts from its start, and with --since from that snapshot. With --baseline the comparison is with what was served up
to a snapshot: for a published head, or where the mix of pictures is known to differ from the training's. --metrics,
--since and --baseline take an address or a file.

PSI is the sum over bins of (served - trained) * ln(served / trained), shares below 0.0001 taken as 0.0001; by the usual
limits it is stable under 0.1, shifted under 0.25, and drifted from there on. KS is the largest difference of the
cumulative shares at an edge of a bin. With fewer than --minimum scores there is no verdict: both are noise then. They
are noise, too, when the held-out data was small: PSI of n and m scores is about (bins - 1) * (1/n + 1/m) by chance.

Prints a table (or JSON, with --json). Exit status 0: nothing drifted; 3: something did; 1: the comparison failed.

The same as PromQL, of the last day. The gauge's label gt is the lower edge of the bin that ends at le:

    clipsieve:score_ratio:1d =
      sum by (head, label, le) (increase(clipsieve_score_bucket[1d]))
      / on (head, label) group_left () (sum by (head, label) (increase(clipsieve_score_bucket{le="+Inf"}[1d])) > 0)
    clipsieve:score_bin_share:1d =
      clipsieve:score_ratio:1d
      * on (head, label, le) group_left (gt) (0 * max by (head, label, gt, le) (clipsieve_training_score_ratio) + 1)
      - on (head, label, gt) group_left ()
      (sum by (head, label, gt) (label_replace(clipsieve:score_ratio:1d{le!="+Inf"}, "gt", "$1", "le", "(.*)"))
      or sum by (head, label, gt) (0 * clipsieve_training_score_ratio{gt="-Inf"}))
    clipsieve:training_score_bin_share =
      max by (head, label, gt, le) (clipsieve_training_score_ratio)
      - on (head, label, gt) group_left ()
      (max by (head, label, gt) (label_replace(clipsieve_training_score_ratio{le!="+Inf"}, "gt", "$1", "le", "(.*)"))
      or sum by (head, label, gt) (0 * clipsieve_training_score_ratio{gt="-Inf"}))
    clipsieve:score_psi:1d =
      sum by (head, label) (
      (clamp_min(clipsieve:score_bin_share:1d, 0.0001) - clamp_min(clipsieve:training_score_bin_share, 0.0001))
      * ln(clamp_min(clipsieve:score_bin_share:1d, 0.0001) / clamp_min(clipsieve:training_score_bin_share, 0.0001)))
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import urllib.error
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from common.manifest import write_atomically
from recipes.errors import run_step
from serving.no_proxy import urlopen
from serving.triton_wheel import ServingError

SERVED = "clipsieve_score_bucket"
TRAINED = "clipsieve_training_score_ratio"
SMALLEST_SHARE = 1e-4
SHIFTED, DRIFTED = 0.1, 0.25
SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)(?: \d+)?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Verdict = Literal["stable", "shifted", "drifted", "too few scores", "nothing to compare with"]
Column = tuple[str, str]
"""Head and label."""
Histogram = dict[float, float]
"""Cumulative counts: for each upper edge, what lies at or below it."""


@dataclass(frozen=True)
class Drift:
    """Drift of one head's label; `psi` and `ks` are None without anything to compare with, or when nothing was
    served."""

    head: str
    label: str
    scores: int
    psi: float | None
    ks: float | None
    verdict: Verdict


def population_stability_index(served: np.ndarray, trained: np.ndarray) -> float:
    """PSI of two (bins,) arrays of shares."""
    served, trained = np.maximum(served, SMALLEST_SHARE), np.maximum(trained, SMALLEST_SHARE)
    return float(((served - trained) * np.log(served / trained)).sum())


def kolmogorov_smirnov(served: np.ndarray, trained: np.ndarray) -> float:
    """The largest difference of two (bins,) arrays of cumulative shares; at most the statistic of the scores."""
    return float(np.abs(served - trained).max())


def histograms(metrics: str, name: str) -> dict[Column, Histogram]:
    """Cumulative histograms of a metric in Prometheus's text format, by head and label."""
    by_column: dict[Column, Histogram] = {}
    for line in metrics.splitlines():
        sample = SAMPLE.fullmatch(line)
        if sample is None or sample["name"] != name:
            continue
        labels = {key: re.sub(r"\\.", _unescaped, value) for key, value in LABEL.findall(sample["labels"])}
        column = by_column.setdefault((labels["head"], labels["label"]), {})
        column[float(labels["le"])] = float(sample["value"])
    return by_column


def served_since(now: dict[Column, Histogram], before: dict[Column, Histogram]) -> dict[Column, Histogram]:
    """Subtract an earlier snapshot; a head that started to count anew meanwhile keeps all of `now`."""
    return {column: _difference(histogram, before.get(column, {})) for column, histogram in now.items()}


def compare(served: dict[Column, Histogram], trained: dict[Column, Histogram], minimum: int) -> list[Drift]:
    """PSI, KS and verdict of every head and label that is served.

    Raises:
        ServingError: the two histograms of a head do not have the same edges.
    """
    return [_compare_one(column, histogram, trained.get(column, {}), minimum) for column, histogram in served.items()]


def _compare_one(column: Column, served: Histogram, trained: Histogram, minimum: int) -> Drift:
    scores = int(served.get(math.inf, 0))
    if not trained or any(math.isnan(ratio) for ratio in trained.values()):
        return Drift(*column, scores, None, None, "nothing to compare with")
    if not set(served) == set(trained):
        raise ServingError(
            f"head {column[0]}, label {column[1]}: served scores are counted at {sorted(served)}, those to compare "
            f"with at {sorted(trained)}; compare snapshots of one server, and install the head again with: make engines"
        )
    if scores == 0:
        return Drift(*column, 0, None, None, "too few scores")
    edges = sorted(served)
    ratios, expected = np.array([served[edge] / scores for edge in edges]), np.array([trained[edge] for edge in edges])
    psi = population_stability_index(np.diff(ratios, prepend=0), np.diff(expected, prepend=0))
    verdict = "too few scores" if scores < minimum else _verdict(psi)
    return Drift(*column, scores, psi, kolmogorov_smirnov(ratios, expected), verdict)


def _verdict(psi: float) -> Verdict:
    return "drifted" if psi >= DRIFTED else "shifted" if psi >= SHIFTED else "stable"


def _difference(now: Histogram, before: Histogram) -> Histogram:
    if any(now.get(edge, 0) < value for edge, value in before.items()):
        return now  # the server was started again
    return {edge: value - before.get(edge, 0) for edge, value in now.items()}


def _unescaped(match: re.Match[str]) -> str:
    return ESCAPED.get(match.group(), match.group())


def read_metrics(source: str) -> str:
    """The text at an address, or in a file.

    Raises:
        ServingError: neither can be read.
    """
    try:
        if source.startswith(("http://", "https://")):
            with urlopen(source, timeout=10) as response:
                return response.read().decode()
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ServingError(f"cannot read metrics from {source}: {reason}; is the server running?") from error


def table(rows: list[Drift]) -> str:
    width = max(len("head, label"), *(len(f"{row.head}, {row.label}") for row in rows))
    lines = [f"{'head, label':{width}}{'scores':>10}{'PSI':>9}{'KS':>8}  verdict"]
    for row in rows:
        psi, ks = ("" if value is None else f"{value:.3f}" for value in (row.psi, row.ks))
        lines.append(f"{f'{row.head}, {row.label}':{width}}{row.scores:>10}{psi:>9}{ks:>8}  {row.verdict}")
    return "\n".join(lines)


def cumulative_shares(served: dict[Column, Histogram]) -> dict[Column, Histogram]:
    """Histograms of counts as shares, as the training's are; of those that have counted anything."""
    return {
        column: {edge: count / histogram[math.inf] for edge, count in histogram.items()}
        for column, histogram in served.items()
        if histogram.get(math.inf)
    }


def drifts(metrics: str, since: str | None, minimum: int, baseline: str | None = None) -> list[Drift]:
    """Compute drifts from the text of the metrics now and at the snapshots.

    Raises:
        ServingError: no scores are counted, or those of another head.
    """
    served = histograms(metrics, SERVED)
    if not served:
        raise ServingError(f"no {SERVED} in the metrics; serve a recipe that says serving: {{watch: true}}")
    if since is not None:
        served = served_since(served, histograms(since, SERVED))
    if baseline is not None:
        return compare(served, cumulative_shares(histograms(baseline, SERVED)), minimum)
    return compare(served, histograms(metrics, TRAINED), minimum)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--metrics", required=True, metavar="URL", help="the server's metrics, or a file of them")
    parser.add_argument("--since", metavar="FILE", help="count only what was served since this snapshot")
    parser.add_argument("--baseline", metavar="FILE", help="compare with this snapshot's scores, not with the training")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the metrics as a snapshot for --since")
    parser.add_argument("--minimum", type=int, default=1000, help="scores for a verdict (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    metrics = read_metrics(arguments.metrics)
    since, baseline = (
        None if source is None else read_metrics(source) for source in (arguments.since, arguments.baseline)
    )
    rows = drifts(metrics, since, arguments.minimum, baseline)
    if arguments.save is not None:
        write_atomically(arguments.save, metrics.encode())
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else table(rows))
    return 3 if any(row.verdict == "drifted" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(run_step("serving.drift", main))
