"""The first request to a server that has just started, against the hundredth: with a warm-up and without.

    make demo                                              # builds what is served
    python -m benchmarks.first_request --rounds 5

Starts the demo's server again and again, each time with another `serving.warmup` of the recipe, waits until Triton
says that it is ready (and infers nothing meanwhile), and sends one picture a hundred times. Prints a table and one
JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from benchmarks.machine import machine, print_result
from build.repository import install
from build.repository_warmup import SAMPLES, gradient_picture
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer
from serving.no_proxy import grpc_client

REQUESTS = 100
POLL_S = 0.02


@dataclass(frozen=True)
class Start:
    """One start of the server, and the requests after it."""

    warmup: str
    ready_s: float
    first_ms: float
    median_ms: float


class UntouchedServer(EmbeddedServer):
    """Ready when Triton says so, where the embedded server wants to see an inference succeed."""

    def _wait_until_ready(self) -> None:
        with grpc_client(self.grpc_url) as client:
            while not is_ready(client):
                if self.poll() is not None:
                    raise RuntimeError(f"tritonserver ended; end of its log:\n{self.log_tail()}")
                time.sleep(POLL_S)


def is_ready(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except InferenceServerException:
        return False


def measure(repository: Path, warmup: str, picture: bytes) -> Start:
    started = time.perf_counter()
    log = repository.with_suffix(".log")
    with UntouchedServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=log) as server:
        ready_s = time.perf_counter() - started
        latencies = one_by_one(server.grpc_url, picture)
    return Start(warmup, ready_s, latencies[0], statistics.median(latencies))


def one_by_one(url: str, picture: bytes) -> list[float]:
    """Latencies in milliseconds, in the order sent, over a connection that stands before the first."""
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture]], dtype=object))
    latencies = []
    with grpc_client(url) as client:
        client.is_server_live()
        for _ in range(REQUESTS):
            started = time.perf_counter()
            client.infer("image_score", [tensor])
            latencies.append(1000 * (time.perf_counter() - started))
    return latencies


def install_each(folder: Path) -> dict[str, Path]:
    """The demo's repository with each kind of warm-up."""
    recipe = load_recipe("demo")
    for warmup in SAMPLES:
        serving = recipe.serving.model_copy(update={"warmup": warmup})
        install(recipe.model_copy(update={"serving": serving}), folder / warmup)
    return {warmup: folder / warmup for warmup in SAMPLES}


def report(starts: list[Start]) -> None:
    print(f"{'warmup':>8} {'ready s':>8} {'first ms':>9} {'median ms':>10} {'first / median':>15}")
    for warmup in SAMPLES:
        rows = [start for start in starts if start.warmup == warmup]
        ready, first, median = (
            statistics.median(getattr(row, name) for row in rows) for name in ("ready_s", "first_ms", "median_ms")
        )
        ratio = statistics.median(row.first_ms / row.median_ms for row in rows)
        print(f"{warmup:>8} {ready:8.1f} {first:9.1f} {median:10.1f} {ratio:15.1f}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_request")
    parser.add_argument("--rounds", type=int, default=5, help="starts with each kind of warm-up (default %(default)s)")
    arguments = parser.parse_args(argv)
    picture, starts, told = gradient_picture(640), [], machine()
    with tempfile.TemporaryDirectory(prefix="clipsieve-first-") as temporary:
        repositories = install_each(Path(temporary))
        for number in range(arguments.rounds):
            print(f"first_request: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            starts += [measure(repository, warmup, picture) for warmup, repository in repositories.items()]
    report(starts)
    print_result("benchmarks.first_request", told, starts=[asdict(start) for start in starts])
    return 0


if __name__ == "__main__":
    sys.exit(main())
