"""Watches the embedded server with a Prometheus and a blackbox exporter on this machine, without containers.

    python -m serving.monitoring.local --http-port 8000 --metrics-port 8002 --port 9090

Runs Debian's `prometheus` and `prometheus-blackbox-exporter` with the files that compose.yaml gives them, on loopback,
until Ctrl-C. What they store goes to --folder, or is gone with them.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from recipes.errors import run_step
from serving.monitoring.queries import Prometheus
from serving.no_proxy import urlopen
from serving.triton_wheel import ServingError
from serving.tritonserver import HOST, held_ports

MONITORING = Path(__file__).parent
PROGRAMS = ("prometheus", "prometheus-blackbox-exporter")
READY_TIMEOUT_S = 60.0

_GATEWAY_JOB = re.compile(r"  - job_name: clipsieve_gateway.*?\n\n", re.DOTALL)


def local_config(http_port: int, metrics_port: int, blackbox_port: int, interval_s: int | None = None) -> str:
    """prometheus.yml for a server on this machine, without a gateway; `interval_s` scrapes and evaluates more often."""
    text = _GATEWAY_JOB.sub("", (MONITORING / "prometheus.yml").read_text())
    places = {"triton:8002": metrics_port, "triton:8000": http_port, "blackbox:9115": blackbox_port}
    for place, port in places.items():
        text = text.replace(place, f"{HOST}:{port}")
    return text if interval_s is None else hastened(text, interval_s)


def hastened(text: str, interval_s: int) -> str:
    """Shorten every interval and the timeout of a scrape, in a configuration or in rules."""
    return re.sub(r"((?:_?interval|scrape_timeout): )\d+[sm]", rf"\g<1>{interval_s}s", text)


@contextlib.contextmanager
def watched(
    http_port: int, metrics_port: int, folder: Path, *, port: int = 0, interval_s: int | None = None
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the server at these ports, with the alerts, and deep health by the blackbox exporter.

    Args:
        folder: for configuration, data and logs; made.
        port: of the Prometheus; 0 picks a free one.
        interval_s: scrape and evaluate this often instead of as in production.

    Raises:
        ServingError: a program is not installed or does not start, or a port is taken.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise ServingError(f"{' and '.join(missing)} not found on PATH; install them, in Debian by these names")
    folder.mkdir(parents=True, exist_ok=True)
    rules = (MONITORING / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(rules if interval_s is None else hastened(rules, interval_s))
    with contextlib.ExitStack() as stack:
        port, blackbox_port = stack.enter_context(held_ports(port, 0))
        (folder / "prometheus.yml").write_text(local_config(http_port, metrics_port, blackbox_port, interval_s))
        stack.enter_context(started(blackbox_command(blackbox_port), folder))
        process = stack.enter_context(started(prometheus_command(port, folder), folder))
        url = f"http://{HOST}:{port}"
        wait_until_ready(process, f"{url}/-/ready", folder / "prometheus.log")
        yield Prometheus(url)


def blackbox_command(port: int) -> list[str]:
    config = MONITORING / "blackbox.yml"
    return ["prometheus-blackbox-exporter", f"--config.file={config}", f"--web.listen-address={HOST}:{port}"]


def prometheus_command(port: int, folder: Path) -> list[str]:
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
    ]


@contextlib.contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen]:
    """The program while the block runs; its log in the folder, by its name."""
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), urlopen(url, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServingError(f"prometheus is not ready; end of its log:\n{log.read_text()[-1000:]}")
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serving.monitoring.local", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--http-port", type=int, default=8000, help="of the server")
    parser.add_argument("--metrics-port", type=int, default=8002, help="of the server")
    parser.add_argument("--port", type=int, default=9090, help="of the Prometheus")
    parser.add_argument("--interval-s", type=int, help="scrape this often instead of as in production")
    parser.add_argument("--folder", type=Path, help="keep the data here")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipsieve-")))
        ports = {"port": arguments.port, "interval_s": arguments.interval_s}
        prometheus = stack.enter_context(watched(arguments.http_port, arguments.metrics_port, folder, **ports))
        print(f"Prometheus: {prometheus.url}   (Ctrl-C stops it)", file=sys.stderr, flush=True)
        signal.pause()


if __name__ == "__main__":
    sys.exit(run_step("serving.monitoring.local", main))
