"""The dashboard with real metrics: a server under a small load, watched by a real Prometheus, drawn as a page.

    python -m trials.dashboard --recipe demo --minutes 3 --out artifacts/dashboard

Starts the embedded server, Prometheus and the blackbox exporter, scores photographs at a changing rate, files that are
no images among them, and draws every panel (`serving.monitoring.preview`); the page is in the folder. The last line on
stdout is JSON: how many panels have data, the alerts that fire, and the images scored. With --break-encoder it kills
the encoder's process after half of the time, to see who notices.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress, TaskID

from benchmarks.machine import machine, print_result
from clipsieve import Client
from common.manifest import write_atomically
from common.paths import repository_folder
from common.photos import sample_photos
from recipes.arguments import add_recipe_options, recipe_of
from serving.embedded import EmbeddedServer, ServerSettings
from serving.monitoring.local import watched
from serving.monitoring.preview import DASHBOARD, layout, page
from serving.monitoring.queries import Prometheus, Window, variables_of

INTERVAL_S = 2
QUANTILES = "--metrics-config=summary_latencies=true"  # which compose.yaml switches on


def score_for(client: Client, seconds: float, progress: Progress, task: TaskID) -> int:
    """Score bursts of photographs, one file in ten broken, for so long; how many images."""
    choose = random.Random(0)
    photos = [path.read_bytes() for path in sample_photos()]
    start, count, done = time.monotonic(), 0, 0.0
    while done < seconds:
        burst = [choose.choice(photos) for _ in range(choose.randint(4, 40))]
        broken = [data[: len(data) // 2] if choose.random() < 0.5 else b"not an image" for data in burst]
        sent = [bad if choose.random() < 0.1 else good for good, bad in zip(burst, broken, strict=True)]
        count += len(client.score(sent))
        time.sleep(choose.random())
        passed = min(time.monotonic() - start, seconds)
        progress.update(task, advance=passed - done)
        done = passed
    return count


def kill_encoder(server: EmbeddedServer) -> None:
    stubs = [child for child in psutil.Process(server.pid).children() if "clip_encoder" in " ".join(child.cmdline())]
    os.kill(stubs[0].pid, signal.SIGKILL)


def filled_panels(prometheus: Prometheus, window: Window) -> tuple[list[str], list[str]]:
    """Titles of the panels that have data, and of those that have none."""
    dashboard = json.loads(DASHBOARD.read_text())
    filled, empty = [], []
    for panel, seen in layout(dashboard, variables_of(dashboard, prometheus)):
        if panel["type"] != "row":
            series = [one for target in panel["targets"] for one in prometheus.series(target, seen, window)]
            (filled if series else empty).append(panel["title"])
    return filled, empty


def firing(prometheus: Prometheus) -> list[str]:
    return sorted({f"{alert['labels']['alertname']} {alert['state']}" for alert in prometheus.get("alerts")["alerts"]})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.dashboard", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser, default="demo")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the page and the logs")
    parser.add_argument("--break-encoder", action="store_true")
    arguments, hardware = parser.parse_args(argv), machine()
    repository = repository_folder(recipe_of(arguments))
    seconds = 60 * arguments.minutes
    log = arguments.out / "tritonserver.log"
    with (
        EmbeddedServer(repository, ServerSettings.on_free_ports(log, options=[QUANTILES])) as server,
        watched(
            server.http_port, server.metrics_port, arguments.out / "prometheus", interval_s=INTERVAL_S
        ) as prometheus,
        Client(server.grpc_url) as client,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("scoring", total=seconds)
        count = score_for(client, seconds / 2, progress, task)
        if arguments.break_encoder:
            kill_encoder(server)
        count += score_for(client, seconds / 2, progress, task)
        window = Window(time.time(), seconds, step_s=INTERVAL_S, rate_interval_s=4 * INTERVAL_S)
        html = page(json.loads(DASHBOARD.read_text()), prometheus, window)
        filled, empty = filled_panels(prometheus, window)
        alerts = firing(prometheus)
    write_atomically(arguments.out / "dashboard.html", html.encode())
    print(f"{len(filled)} panels with data; without: {', '.join(empty) or 'none'}", file=sys.stderr)
    print_result("trials.dashboard", hardware, panels=len(filled), empty=empty, alerts=alerts, images=count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
