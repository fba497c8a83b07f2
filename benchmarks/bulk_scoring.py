"""`clipsieve score` over many files against perf_analyzer on the same pictures and server: rate, memory, CPU.

    make demo                                              # builds what is served
    python -m benchmarks.bulk_scoring --files 10000 100000

Draws pictures as the demo does, names each many times over (hard links), starts the demo's server, and runs in turn
perf_analyzer at several concurrencies, the command line over each number of files, and perf_analyzer again. Both send
one image a request and several (`--images-per-request`). CPU is of the client's process beside that of the server's
processes in the same time. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import machine, print_result
from common.paths import repository_folder
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer
from serving.perf import measure
from serving.triton_wheel import find_wheel
from training.draw import draw_set

PICTURES = 200
FILES_PER_FOLDER = 1000


@dataclass(frozen=True)
class Run:
    """`clipsieve score` over so many files."""

    files: int
    images_per_request: int
    images_per_s: float
    """Of the whole process, its start included."""
    peak_mib: float
    client_cpu_ms: float
    """Per image."""
    server_cpu_ms: float


def link_files(pictures: list[Path], folder: Path, count: int) -> None:
    for index in range(count):
        target = folder / f"{index // FILES_PER_FOLDER:04d}" / f"{index:06d}{pictures[0].suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        source = pictures[index % len(pictures)]
        os.link(source, target.with_suffix(source.suffix))


def score(url: str, folder: Path, count: int, concurrency: int, images_per_request: int) -> Run:
    command = [str(Path(sys.executable).with_name("clipsieve")), "score", str(folder), "--url", url, "--quiet"]
    command += ["--images-per-request", str(images_per_request), "--overwrite"]
    out = folder.with_suffix(".parquet")
    before, started = server_cpu_s(), time.perf_counter()
    process = subprocess.Popen([*command, "--concurrency", str(concurrency), "--out", str(out)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"clipsieve score ended with status {os.waitstatus_to_exitcode(status)}")
    return Run(
        files=count,
        images_per_request=images_per_request,
        images_per_s=count / seconds,
        peak_mib=usage.ru_maxrss / 1024,
        client_cpu_ms=1000 * (usage.ru_utime + usage.ru_stime) / count,
        server_cpu_ms=1000 * (server_cpu_s() - before) / count,
    )


def server_cpu_s() -> float:
    """Of the server's processes, which are this one's only children of that kind."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children if "triton" in child.name())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk_scoring")
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--concurrency", type=int, default=32, help="of the command line (default %(default)s)")
    parser.add_argument("--images-per-request", type=int, nargs="+", default=[1, 4])
    arguments, told = parser.parse_args(), machine()
    repository = repository_folder(load_recipe("demo"))
    with tempfile.TemporaryDirectory(prefix="clipsieve-bulk-") as temporary:
        folder = Path(temporary)
        draw_set(folder / "drawn", PICTURES, 0, seed=0)
        pictures = sorted(path for path in (folder / "drawn").rglob("*") if path.is_file())
        log = folder / "tritonserver.log"
        with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=log) as server:
            sizes = arguments.images_per_request
            rates = perf_rates(server.grpc_url, pictures, folder / "perf-1", sizes)
            runs = []
            for count in arguments.files:
                link_files(pictures, folder / str(count), count)
                for size in sizes:
                    runs.append(score(server.grpc_url, folder / str(count), count, arguments.concurrency, size))
            rates += perf_rates(server.grpc_url, pictures, folder / "perf-2", sizes)
    report(rates, runs)
    print_result("benchmarks.bulk_scoring", told, perf=rates, runs=[asdict(run) for run in runs])
    return 0


def perf_rates(url: str, pictures: list[Path], folder: Path, sizes: list[int]) -> list[dict]:
    """One row for 16, 32 and 64 images in flight, for each number of images in a request."""
    rows = []
    for size in sizes:
        (outputs := folder.with_name(f"{folder.name}-{size}")).mkdir()
        in_flight = [max(1, images // size) for images in (16, 32, 64)]
        measured = measure(url, pictures, in_flight, outputs, find_wheel().libraries, size)
        rows += [row | {"images_per_request": size} for row in measured]
    return rows


def report(rates: list[dict], runs: list[Run]) -> None:
    best: dict[int, float] = {}
    for row in rates:
        size = row["images_per_request"]
        best[size] = max(best.get(size, 0), row["images_per_s"])
        print(f"perf_analyzer, {row['concurrency']:2} requests of {size}: {row['images_per_s']:6.1f} images/s")
    head = f"{'files':>8} {'a request':>9} {'images/s':>9} {'peak MiB':>9} {'client ms':>10} {'server ms':>10}"
    print(head + "".join(f"  of perf's best with {size}" for size in best))
    for run in runs:
        print(
            f"{run.files:8} {run.images_per_request:9} {run.images_per_s:9.1f} {run.peak_mib:9.1f} "
            f"{run.client_cpu_ms:10.2f} {run.server_cpu_ms:10.2f}"
            + "".join(f"{run.images_per_s / rate:22.2f}" for rate in best.values())
        )


if __name__ == "__main__":
    sys.exit(main())
