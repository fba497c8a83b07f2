"""Cost of watching the scores: the same server with and without `serving.watch`, in interleaved rounds.

    make demo                                              # builds what is served
    python -m benchmarks.watch
    python -m benchmarks.watch --recipe nsfw-vit-b-32 --images 60

Serves the recipe's models twice side by side. Each round sends the same pictures to one server and then to the other,
first many at once, for the rate and the server's CPU time, then one after another, for the latency; every other round
begins with the other server. Then what Triton's own statistics say of the watch.
Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import Machine, machine, print_result
from benchmarks.tables import print_table
from build.repository import install
from clipsieve import Client
from common.photos import sample_photos
from recipes.arguments import add_recipe_options, recipe_of
from recipes.schema import Recipe
from serving.embedded import EmbeddedServer, ServerSettings
from serving.no_proxy import grpc_client

CONCURRENCY = 32
ONE_BY_ONE = 50


@dataclass(frozen=True)
class Round:
    """One round of one server: rate and CPU time with many images at once, median latency of one after another."""

    images_per_s: float
    cpu_ms: float
    """Processor time of all the server's processes, per image."""
    latency_ms: float


@dataclass(frozen=True)
class Step:
    """One watch: what Triton's statistics say of the average request, and what its process takes."""

    queue_us: float
    compute_us: float
    images_per_execution: float
    cpu_us: float
    """Processor time of its process, per image."""
    memory_mib: float
    """Memory that it shares with no other process."""


def server_cpu_s(server: EmbeddedServer) -> float:
    process = psutil.Process(server.pid)
    return sum(sum(each.cpu_times()[:2]) for each in [process, *process.children(recursive=True)])


def measure(server: EmbeddedServer, pictures: list[bytes]) -> Round:
    with Client(server.grpc_url, concurrency=CONCURRENCY) as client:
        client.score(pictures[:CONCURRENCY])  # connects
        before, started = server_cpu_s(server), time.perf_counter()
        assert all(score.ok for score in client.score(pictures))
        seconds, cpu_s = time.perf_counter() - started, server_cpu_s(server) - before
    latencies = []
    with Client(server.grpc_url, concurrency=1) as client:
        client.score(pictures[:1])
        for picture in pictures[:ONE_BY_ONE]:
            started = time.perf_counter()
            client.score([picture])
            latencies.append(time.perf_counter() - started)
    return Round(
        images_per_s=len(pictures) / seconds,
        cpu_ms=1000 * cpu_s / len(pictures),
        latency_ms=1000 * statistics.median(latencies),
    )


def with_watch(recipe: Recipe, watch: bool) -> Recipe:
    return recipe.model_copy(update={"serving": recipe.serving.model_copy(update={"watch": watch})})


def served(recipe: Recipe, folder: Path) -> EmbeddedServer:
    install(recipe, folder / "model_repository", "onnx")
    log = folder / "tritonserver.log"
    return EmbeddedServer(folder / "model_repository", ServerSettings.on_free_ports(log))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch")
    add_recipe_options(parser, default="demo", help="a recipe whose artefacts are built (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=400, help="of each round (default %(default)s)")
    arguments, hardware = parser.parse_args(), machine()
    recipe = recipe_of(arguments)
    photos = [path.read_bytes() for path in sample_photos()]
    pictures = [photos[index % len(photos)] for index in range(arguments.images)]
    with tempfile.TemporaryDirectory(prefix="clipsieve-watch-") as temporary:
        folder = Path(temporary)
        with (
            served(with_watch(recipe, False), folder / "off") as off,
            served(with_watch(recipe, True), folder / "on") as on,
        ):
            rounds = interleaved({"off": off, "on": on}, pictures, arguments.rounds)
            steps = steps_of(on)
    report(arguments.recipe, rounds, steps, hardware)
    return 0


def steps_of(server: EmbeddedServer) -> dict[str, Step]:
    """Figures of each watch over all rounds."""
    with grpc_client(server.grpc_url) as client:
        answer = client.get_inference_statistics()
    assert answer is not None
    return {model.name: step_of(server, model) for model in answer.model_stats if model.name.endswith("_watch")}


def step_of(server: EmbeddedServer, model) -> Step:
    children = psutil.Process(server.pid).children(recursive=True)
    (process,) = (child for child in children if f"/{model.name}/" in " ".join(child.cmdline()))
    stats = model.inference_stats
    return Step(
        queue_us=stats.queue.ns / stats.queue.count / 1000,
        compute_us=stats.compute_infer.ns / stats.compute_infer.count / 1000,
        images_per_execution=model.inference_count / model.execution_count,
        cpu_us=1e6 * sum(process.cpu_times()[:2]) / model.inference_count,
        memory_mib=process.memory_full_info().uss / 2**20,
    )


def interleaved(servers: dict[str, EmbeddedServer], pictures: list[bytes], count: int) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {name: [] for name in servers}
    for number in range(-1, count):  # the first one warms up
        for name in sorted(servers, reverse=number % 2 == 1):
            figures = measure(servers[name], pictures)
            if number >= 0:
                rounds[name].append(figures)
        print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
    return rounds


def report(recipe: str, rounds: dict[str, list[Round]], steps: dict[str, Step], hardware: Machine) -> None:
    """Medians of either, and the median of the rounds' ratios, which a noisy machine spoils least."""
    print(f"{recipe}: {len(rounds['on'])} rounds, {CONCURRENCY} images at once for the rate, one for the latency")
    ratios, medians = {}, []
    for name in ("images_per_s", "cpu_ms", "latency_ms"):
        off, on = ([getattr(each, name) for each in rounds[side]] for side in ("off", "on"))
        low, middle, high = statistics.quantiles([b / a for a, b in zip(off, on, strict=True)], n=4)
        ratios[name] = middle
        pair = {"without": statistics.median(off), "with watch": statistics.median(on)}
        medians.append({"": name} | pair | {"ratio": f"{middle:.3f}", "quartiles": f"{low:.3f} to {high:.3f}"})
    print_table(medians)
    print_table([{"": name} | asdict(step) for name, step in steps.items()])
    rows = {side: [asdict(each) for each in measured] for side, measured in rounds.items()}
    step_rows = {name: asdict(step) for name, step in steps.items()}
    print_result("benchmarks.watch", hardware, recipe=recipe, ratios=ratios, steps=step_rows, rounds=rows)


if __name__ == "__main__":
    sys.exit(main())
