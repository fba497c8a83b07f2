"""Cost of the gateway: images/s and latency through `serving.gateway`, and directly to Triton over gRPC.

    make demo                                                       # builds what is served
    make train RECIPE=benchmarks/peers/vit-b-32.yaml DATA=PHOTOS    # any two labelled folders: angular/ and round/
    python -m benchmarks.gateway
    python -m benchmarks.gateway --recipes demo --rounds 3 --seconds 2

For each recipe one server and one gateway before it, on this machine, which the generator of the load shares with them.
Each round keeps so many requests of one picture under way, as forms to the gateway and as gRPC messages to Triton, both
made beforehand, and then sends pictures one after another with nothing else under way; every other round begins with
the other door. Ratios and differences are those of a round, told are their medians. Takes about 3 minutes. Prints
tables and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.comparison import Comparison, comparisons_json
from benchmarks.machine import hardware_line, machine, print_result
from benchmarks.offered_load import connect, score_request
from benchmarks.results.views import terminal_text
from build.head import build_head
from build.repository import install
from common.paths import ROOT, head_folder
from common.photos import sample_photos
from recipes.errors import ExpectedError, run_step
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer, ServerSettings, free_ports
from serving.no_proxy import environment

RECIPES = ("demo", "benchmarks/peers/vit-b-32.yaml")
MINIMUM_RATIO = 0.9
MAXIMUM_ADDED_MS = 3.0
TIMEOUT_S = 60.0
HOST = "127.0.0.1"

Ask = Callable[[], Awaitable[None]]
"""Sends the next picture and waits for its scores."""
Door = Callable[[], AbstractAsyncContextManager[Ask]]


class GatewayFailed(ExpectedError):
    """A request was refused, or the gateway did not start."""


def form_request(picture: bytes) -> bytes:
    """All bytes of a request with one file."""
    mark = b"--a-picture-of-the-benchmark"
    disposition = b'\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = mark + disposition + picture + b"\r\n" + mark + b"--\r\n"
    head = (
        f"POST /score HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=a-picture-of-the-benchmark\r\n\r\n"
    )
    return head.encode() + body


class HttpConnections:
    """Connections that are kept, and opened as more requests are under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes) -> None:
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection(HOST, self._port, limit=2**20)
        )
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200 ") or b'"heads"' not in body:
            raise GatewayFailed(f"the gateway answered {head[:40]!r} {body[:200]!r}")
        self._idle.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


@asynccontextmanager
async def through_gateway(port: int, pictures: Sequence[bytes]) -> AsyncIterator[Ask]:
    requests = itertools.cycle([form_request(picture) for picture in pictures])
    connections = HttpConnections(port)

    async def ask() -> None:
        await asyncio.wait_for(connections.send(next(requests)), TIMEOUT_S)

    try:
        yield ask
    finally:
        connections.close()


@asynccontextmanager
async def directly(url: str, pictures: Sequence[bytes]) -> AsyncIterator[Ask]:
    requests = itertools.cycle([score_request(picture, priority=1) for picture in pictures])
    async with connect(url, TIMEOUT_S) as caller:

        async def ask() -> None:
            answer = await caller(next(requests))
            if answer.status != "OK":
                raise GatewayFailed(f"Triton answered {answer.status}")

        yield ask


async def saturate(door: Door, concurrency: int, seconds: float) -> float:
    """Images/s with so many requests under way."""
    async with door() as ask:
        await asyncio.gather(*(ask() for _ in range(concurrency)))  # connects
        started, done = time.perf_counter(), 0

        async def worker() -> None:
            nonlocal done
            while time.perf_counter() < started + seconds:
                await ask()
                done += 1

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return done / (time.perf_counter() - started)


async def one_by_one(door: Door, count: int) -> float:
    """Median milliseconds of an answer with nothing else under way."""
    async with door() as ask:
        await ask()
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            await ask()
            taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


@contextmanager
def running_gateway(url: str, folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """The port and the process id of a gateway before this server, whose log is in the folder."""
    (port,) = free_ports(0)
    command = [sys.executable, "-m", "serving.gateway", "--url", url, "--port", str(port), *options]
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        asyncio.run(_wait_for(process, port))
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


async def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise GatewayFailed(f"the gateway did not start within {TIMEOUT_S:.0f} s, or ended with {process.poll()}")


def cpu_s(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2])


def measure(recipe_name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one recipe: medians of the rounds."""
    recipe = load_recipe(recipe_name)
    patient = recipe.serving.model_copy(update={"queue_timeout_ms": int(1000 * TIMEOUT_S)})  # nothing is refused
    recipe = recipe.model_copy(update={"serving": patient})
    for head in recipe.heads:
        build_head(head_folder(recipe, head), recipe.build.opset)
    install(recipe, folder / "models", "onnx")
    pictures = [path.read_bytes() for path in sample_photos()]
    rows: list[dict[str, float]] = []
    with (
        EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "tritonserver.log")) as server,
        running_gateway(server.grpc_url, folder) as (port, pid),
    ):
        doors: dict[str, Door] = {
            "direct": lambda: directly(server.grpc_url, pictures),
            "gateway": lambda: through_gateway(port, pictures),
        }
        for number in range(-1, arguments.rounds):  # the first warms up
            row: dict[str, float] = {}
            for name in sorted(doors, reverse=number % 2 == 1):
                before = cpu_s(pid)
                rate = asyncio.run(saturate(doors[name], arguments.concurrency, arguments.seconds))
                row[f"{name}_images_per_s"] = rate
                if name == "gateway":
                    row["cpu_ms"] = 1000 * (cpu_s(pid) - before) / (rate * arguments.seconds)
                row[f"{name}_p50_ms"] = asyncio.run(one_by_one(doors[name], arguments.alone))
            if number >= 0:
                rows.append(row)
            print(f"{recipe.name}: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    figures["ratio"] = statistics.median(row["gateway_images_per_s"] / row["direct_images_per_s"] for row in rows)
    figures["added_p50_ms"] = statistics.median(row["gateway_p50_ms"] - row["direct_p50_ms"] for row in rows)
    return {"recipe": recipe.name} | {name: round(value, 3) for name, value in figures.items()}


def comparisons(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    return [
        each
        for row in rows
        for each in (
            Comparison(f"{row['recipe']}: gateway / direct images/s", row["ratio"], MINIMUM_RATIO, True, "direct gRPC"),
            Comparison(
                f"{row['recipe']}: added p50 alone, ms", row["added_p50_ms"], MAXIMUM_ADDED_MS, False, "direct gRPC"
            ),
        )
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="recipes whose artefacts are built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way (default %(default)s)")
    parser.add_argument("--alone", type=int, default=40, help="pictures one after another (default %(default)s)")
    arguments, hardware = parser.parse_args(argv), machine()
    rows = []
    for name in arguments.recipes:
        with tempfile.TemporaryDirectory(prefix="clipsieve-gateway-") as folder:
            rows.append(measure(name, Path(folder), arguments))
    how = {name: getattr(arguments, name) for name in ("rounds", "seconds", "concurrency")}
    result = how | {"doors": rows, "comparisons": comparisons_json(comparisons(rows))}
    print(hardware_line(hardware))
    print(terminal_text({"benchmark": "gateway"} | result))
    print_result("benchmarks.gateway", hardware, **result)
    return 0


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.gateway", main))
