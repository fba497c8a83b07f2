"""Content of the dashboard: rows of panels, each with the expressions that fill it.

Variables: `$instance` (servers), `$head` and `$label` (score columns); the row of scores is repeated for each head.
`serving.monitoring.dashboard` prints them as Grafana's JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ON = 'instance=~"$instance"'
OF_HEAD = f'{ON},head=~"$head",label=~"$label"'
ENSEMBLES = 'model=~"image_score|image_embedding"'
STEPS = 'model!~"image_score|image_embedding|proof"'  # those that a picture passes through


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of its series; `buckets` are cumulative by `le` and drawn one by one."""

    expression: str
    legend: str = ""
    buckets: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel; `unit` is Grafana's name of one, e.g. `percentunit` for shares of 1.

    Attributes:
        kind: Grafana's type of panel.
        width: of 24 columns.
        stacked: whether the series add up.
        limits: where green turns to orange, and to red.
        red_below: instead, red is everything under this.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "bargauge", "table"] = "timeseries"
    width: int = 8
    stacked: bool = False
    limits: tuple[float, ...] = ()
    red_below: float | None = None
    description: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]
    repeat: str | None = None
    """A variable; the row is drawn once for each of its values."""


def rate(metric: str, labels: str = ON) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def mean_ms(duration_us: str, labels: str) -> str:
    """A cumulative duration for one request, by model."""
    return (
        f"sum by (model) ({rate(duration_us, labels)}) / "
        f"(sum by (model) ({rate('nv_inference_request_success', labels)}) > 0) / 1000"
    )


def quantiles(bucket: str, *, by: str = "", labels: str = ON) -> tuple[Query, ...]:
    """The median, 95 % and 99 % of a histogram."""
    groups = f"{by}, le" if by else "le"
    prefix = "".join(f"{{{{{name.strip()}}}}} " for name in by.split(",") if name)
    return tuple(
        Query(f"histogram_quantile({q}, sum by ({groups}) ({rate(bucket, labels)}))", f"{prefix}p{100 * q:.0f}")
        for q in (0.5, 0.95, 0.99)
    )


TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Deep health",
            (Query('probe_success{job="clipsieve_health"}', "{{model}} {{instance}}"),),
            kind="stat",
            width=6,
            red_below=1,
            description="A real inference of each ensemble: 1 answered, 0 did not.",
        ),
        Panel(
            "Heads",
            (Query(f"max by (head, revision) (clipsieve_head_revision{{{ON}}} == 1)", "{{head}} {{revision}}"),),
            kind="table",
            width=6,
            description="The revision of every head that answers, as in head.json and in each response.",
        ),
        Panel(
            "Images",
            (
                Query(f"sum({rate('clipsieve_images_total')})", "received"),
                Query(f"sum({rate('clipsieve_image_failures_total')})", "refused"),
            ),
            unit="ops",
            width=6,
        ),
        Panel(
            "Requests",
            (
                Query(f"sum by (model) ({rate('nv_inference_request_success', f'{ON},{ENSEMBLES}')})", "{{model}}"),
                Query('clipsieve:request_failures:rate5m{instance=~"$instance"}', "failed, images fine: {{instance}}"),
            ),
            unit="reqps",
            width=6,
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Queue",
            (Query(mean_ms("nv_inference_queue_duration_us", f"{ON},{STEPS}"), "{{model}}"),),
            unit="ms",
            description="How long a request waits in each model's queue, on average.",
        ),
        Panel(
            "Compute",
            (Query(mean_ms("nv_inference_compute_infer_duration_us", f"{ON},{STEPS}"), "{{model}}"),),
            unit="ms",
            description="How long the batch it is in takes in each model, on average.",
        ),
        Panel(
            "Whole request",
            (
                Query(mean_ms("nv_inference_request_duration_us", f"{ON},{ENSEMBLES}"), "{{model}} mean"),
                Query(
                    "max by (model, quantile) "
                    f'(nv_inference_request_summary_us{{{ON},{ENSEMBLES},quantile=~"0.5|0.99"}}) / 1000',
                    "{{model}} p{{quantile}}",
                ),
            ),
            unit="ms",
            description="Quantiles want the server's --metrics-config=summary_latencies=true.",
        ),
        Panel(
            "Queue against compute",
            (Query('clipsieve:queue_to_compute:rate5m{instance=~"$instance"}', "{{model}} {{instance}}"),),
            limits=(1, 3),
            description="Up to 1 is a batch that waits for the one before it; above, the model is the bottleneck.",
        ),
        Panel(
            "Batch size",
            (
                Query(
                    f"sum by (model) ({rate('nv_inference_count', f'{ON},{STEPS}')}) / "
                    f"(sum by (model) ({rate('nv_inference_exec_count', f'{ON},{STEPS}')}) > 0)",
                    "{{model}}",
                ),
            ),
            description="Images in one execution, on average.",
        ),
        Panel(
            "Waiting",
            (Query(f"sum by (model) (nv_inference_pending_request_count{{{ON},{STEPS}}})", "{{model}}"),),
            description="Requests in each model's queue at this moment.",
        ),
    ),
)

FAILURES = Row(
    "Failures",
    (
        Panel(
            "Images refused, by cause",
            (Query(f"sum by (code) ({rate('clipsieve_image_failures_total')})", "{{code}}"),),
            unit="ops",
            stacked=True,
        ),
        Panel(
            "Share of images refused",
            (
                Query(
                    f"sum({rate('clipsieve_image_failures_total')}) / (sum({rate('clipsieve_images_total')}) > 0)",
                    "refused",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Requests failed in a model",
            (
                Query(
                    f"sum by (model, reason) ({rate('nv_inference_request_failure', f'{ON},{STEPS}')}) > 0",
                    "{{model}} {{reason}}",
                ),
            ),
            unit="reqps",
            description="BACKEND: its process failed. REJECTED: a deadline passed in the queue.",
        ),
    ),
)

SIZES = Row(
    "Images",
    (
        Panel("File size", quantiles("clipsieve_image_bytes_bucket"), unit="bytes", width=12),
        Panel("Pixels", quantiles("clipsieve_image_pixels_bucket"), width=12),
    ),
)

SCORES = Row(
    "Scores of $head",
    (
        Panel(
            "Served, last hour",
            (
                Query(
                    f"sum by (le) (increase(clipsieve_score_bucket{{{OF_HEAD}}}[1h])) / on () group_left () "
                    f'(sum(increase(clipsieve_score_bucket{{{OF_HEAD},le="+Inf"}}[1h])) > 0)',
                    "{{le}}",
                    buckets=True,
                ),
            ),
            unit="percentunit",
            kind="bargauge",
            width=6,
            description="Share of the scores in each bin, by the bin's upper edge.",
        ),
        Panel(
            "Training",
            (Query(f"avg by (le) (clipsieve_training_score_ratio{{{OF_HEAD}}})", "{{le}}", buckets=True),),
            unit="percentunit",
            kind="bargauge",
            width=6,
            description="The same shares of the head's training data. Empty for a published head.",
        ),
        Panel(
            "Score quantiles",
            tuple(
                Query(
                    f"histogram_quantile({q}, sum by (label, le) ({rate('clipsieve_score_bucket', OF_HEAD)}))",
                    f"{{{{label}}}} p{100 * q:.0f}",
                )
                for q in (0.1, 0.5, 0.9)
            ),
            width=6,
        ),
        Panel(
            "Decisions",
            (
                Query(
                    f"sum by (label, decision) ({rate('clipsieve_decisions_total', OF_HEAD)}) / "
                    f"on (label) group_left () (sum by (label) ({rate('clipsieve_decisions_total', OF_HEAD)}) > 0)",
                    "{{label}} {{decision}}",
                ),
            ),
            unit="percentunit",
            width=6,
        ),
    ),
    repeat="head",
)

DRIFT = Row(
    "Drift and shadow heads",
    (
        Panel(
            "Drift: PSI of the last day",
            (Query('clipsieve:score_psi:1d{head=~"$head",label=~"$label"}', "{{head}} {{label}}"),),
            limits=(0.1, 0.25),
            width=6,
            description="Against the head's training data: under 0.1 stable, from 0.25 drifted.",
        ),
        Panel(
            "Drift: KS of the last day",
            (Query('clipsieve:score_ks:1d{head=~"$head",label=~"$label"}', "{{head}} {{label}}"),),
            width=6,
            description="The largest distance between the two cumulative distributions.",
        ),
        Panel(
            "Shadow disagrees",
            (
                Query(
                    f"sum by (head, shadow, label) ({rate('clipsieve_shadow_disagreements_total', OF_HEAD)}) / "
                    "on (head, label) group_left () "
                    f"(sum by (head, label) ({rate('clipsieve_scores_total', OF_HEAD)}) > 0)",
                    "{{shadow}} and {{head}} {{label}}",
                ),
            ),
            unit="percentunit",
            width=6,
            description="Share of the images that the candidate decides otherwise than the head it shadows.",
        ),
        Panel(
            "Shadow: median score and decisions",
            (
                Query(
                    "histogram_quantile(0.5, sum by (shadow, label, le) "
                    f"({rate('clipsieve_shadow_score_bucket', OF_HEAD)}))",
                    "{{shadow}} {{label}} median score",
                ),
                Query(
                    f"sum by (shadow, label, decision) ({rate('clipsieve_shadow_decisions_total', OF_HEAD)}) / "
                    "on (shadow, label) group_left () "
                    f"(sum by (shadow, label) ({rate('clipsieve_shadow_decisions_total', OF_HEAD)}) > 0)",
                    "{{shadow}} {{label}} {{decision}}",
                ),
            ),
            width=6,
        ),
    ),
)

RESOURCES = Row(
    "Resources",
    (
        Panel("GPU", (Query(f"nv_gpu_utilization{{{ON}}}", "{{instance}} {{gpu_uuid}}"),), unit="percentunit", width=6),
        Panel(
            "GPU memory",
            (
                Query(
                    f"nv_gpu_memory_used_bytes{{{ON}}} / nv_gpu_memory_total_bytes{{{ON}}}", "{{instance}} {{gpu_uuid}}"
                ),
            ),
            unit="percentunit",
            limits=(0.9, 0.95),
            width=6,
        ),
        Panel("CPU", (Query(f"nv_cpu_utilization{{{ON}}}", "{{instance}}"),), unit="percentunit", width=6),
        Panel(
            "Memory of the machine",
            (Query(f"nv_cpu_memory_used_bytes{{{ON}}} / nv_cpu_memory_total_bytes{{{ON}}}", "{{instance}}"),),
            unit="percentunit",
            limits=(0.9, 0.95),
            width=6,
        ),
    ),
)

ROWS = (TRAFFIC, LATENCY, FAILURES, SIZES, SCORES, DRIFT, RESOURCES)
