"""Speed and memory of `clipsieve review` with many pictures: its first paint, the next picture, an answer.

    python -m benchmarks.review                      # 50,000 files of photographs of 12 megapixels
    python -m benchmarks.review --pictures 2000 --steps 20

The pictures are twelve photographs under many names, with a table of scores that are drawn; what is made of a file is
kept by its name, so that each costs what a file of its own costs. A client asks as the page does, over six connections:
for the page, the state, the order, the rows of the first screen and their small pictures; then, picture after picture,
it answers and asks for the next one, large, which nobody asked for before; the page itself asks for it ahead. First
paint is the page with its first row of pictures, seven; the first screen has five rows of a wide window. The memory is
the most that the server's process ever had. Takes about a minute. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
from PIL import Image

from benchmarks.comparison import Comparison, comparisons_json
from benchmarks.machine import hardware_line, machine, print_result
from benchmarks.results.views import terminal_text
from common.paths import ROOT
from common.photos import sample_photos
from recipes.errors import ExpectedError, run_step

MAXIMUM_FIRST_PAINT_S, MAXIMUM_NEXT_MS, MAXIMUM_RSS_MIB = 1.0, 100.0, 300.0
FIRST_ROW, FIRST_SCREEN, CONNECTIONS = 7, 35, 6
SIZE = (4000, 3000)


class ReviewFailed(ExpectedError):
    """The page refused a request, or did not start."""


@dataclass(frozen=True)
class Review:
    """The address and the token of a page that runs."""

    port: int
    token: str
    pid: int

    def send(self, path: str, body: Any = None) -> bytes:
        """The body of an answer.

        Raises:
            ReviewFailed: it is no success.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {self.token}", "X-Clipsieve-Review": "1"}
            data = None if body is None else json.dumps(body)
            connection.request("GET" if data is None else "POST", path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ReviewFailed(f"{path} was answered with {answer.status}: {content[:200]!r}")
        return content


def write_pictures(folder: Path, count: int) -> Path:
    """Photographs of 12 megapixels under so many names, and a table of their scores; returns the table."""
    originals = []
    for number, photo in enumerate(sample_photos()):
        with Image.open(photo) as image:
            large = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        originals.append(folder / f"original-{number}.jpg")
        large.save(originals[-1], quality=88)
    (folder / "pictures").mkdir()
    scores = np.random.default_rng(0).random(count).round(4)
    table = folder / "scores.csv"
    with table.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["image_path", "taste_score", "taste_decision", "taste_class_name"])
        for number, score, original in zip(range(count), scores.tolist(), itertools.cycle(originals), strict=False):
            file = folder / "pictures" / f"{number:06}.jpg"
            os.link(original, file)
            writer.writerow([file, score, *(["block", "delete"] if score >= 0.5 else ["allow", "keep"])])
    return table


@contextmanager
def running_review(table: Path, out: Path) -> Iterator[tuple[Review, float]]:
    """A page, and the seconds from its command to its address."""
    command = [
        sys.executable,
        "-m",
        "clipsieve.cli",
        "review",
        str(table),
        "--out",
        str(out),
        "--no-browser",
        "--quiet",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = urlsplit(process.stdout.readline().strip())
        if address.port is None:
            raise ReviewFailed(f"the page did not start; it ended with {process.wait()}")
        yield Review(address.port, parse_qs(address.query)["token"][0], process.pid), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def first_screen(review: Review, pool: ThreadPoolExecutor) -> tuple[float, float, list[int]]:
    """Seconds until the first row of pictures and until all of the first screen is there, and the pictures' order."""
    started = time.perf_counter()
    review.send("/")
    review.send("/state")
    order = json.loads(review.send("/order?sort=highest"))["ids"]
    shown = order[:FIRST_SCREEN]
    asked = [pool.submit(review.send, f"/rows?ids={','.join(map(str, shown))}")]
    asked += [pool.submit(review.send, f"/thumbnail/{place}") for place in shown]
    for each in asked[: FIRST_ROW + 1]:
        each.result()
    first_s = time.perf_counter() - started
    for each in asked:
        each.result()
    return first_s, time.perf_counter() - started, order


def next_pictures(review: Review, order: Sequence[int]) -> dict[str, list[float]]:
    """Milliseconds of each answer, and of each answer with the next picture behind it."""
    taken: dict[str, list[float]] = {"answer": [], "next": []}
    for place, after in itertools.pairwise(order):
        started = time.perf_counter()
        review.send("/answer", {"id": place, "kind": "label", "value": "keep"})
        taken["answer"].append(1000 * (time.perf_counter() - started))
        review.send(f"/rows?ids={after}")
        review.send(f"/picture/{after}")
        taken["next"].append(1000 * (time.perf_counter() - started))
    return taken


def next_pairs(review: Review, count: int) -> list[float]:
    """Milliseconds of each choice with the next pair of names behind it."""
    taken = []
    pair = json.loads(review.send("/pair"))["rows"]
    for _ in range(count):
        started = time.perf_counter()
        review.send("/choose", {"winner": pair[0]["id"], "loser": pair[1]["id"]})
        pair = json.loads(review.send("/pair"))["rows"]
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    table = write_pictures(folder, arguments.pictures)
    with running_review(table, folder / "out") as (review, started_s), ThreadPoolExecutor(CONNECTIONS) as pool:
        first_s, screen_s, order = first_screen(review, pool)
        queues = {}
        for queue in ("uncertain", "unanswered"):
            started = time.perf_counter()
            review.send(f"/order?queue={queue}")
            queues[f"{queue}_ms"] = 1000 * (time.perf_counter() - started)
        taken = next_pictures(review, order[FIRST_SCREEN : FIRST_SCREEN + arguments.steps + 1])
        pairs = next_pairs(review, arguments.steps)
        scrolled = order[:: max(1, len(order) // 600)]
        list(pool.map(review.send, [f"/thumbnail/{place}" for place in scrolled]))
        peak = peak_mib(review.pid)
    return {
        "started_s": started_s,
        "first_paint_s": first_s,
        "first_screen_s": screen_s,
        "answer_p50_ms": statistics.median(taken["answer"]),
        "next_p50_ms": statistics.median(taken["next"]),
        "next_p95_ms": statistics.quantiles(taken["next"], n=20)[-1],
        "pair_p50_ms": statistics.median(pairs),
        "rss_mib": peak,
        **queues,
    }


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return psutil.Process(pid).memory_info().rss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def comparisons(figures: dict[str, float]) -> list[Comparison]:
    return [
        Comparison("first paint, s", figures["first_paint_s"], MAXIMUM_FIRST_PAINT_S, False, "the limit"),
        Comparison("next picture p50, ms", figures["next_p50_ms"], MAXIMUM_NEXT_MS, False, "the limit"),
        Comparison("memory, MiB", figures["rss_mib"], MAXIMUM_RSS_MIB, False, "the limit"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=60, help="pictures one after another (default %(default)s)")
    arguments, hardware = parser.parse_args(argv), machine()
    with tempfile.TemporaryDirectory(prefix="clipsieve-review-") as folder:
        figures = {name: round(value, 3) for name, value in measure(Path(folder), arguments).items()}
    result = {"pictures": arguments.pictures, "steps": arguments.steps, **figures}
    result["comparisons"] = comparisons_json(comparisons(figures))
    print(hardware_line(hardware))
    print(terminal_text({"benchmark": "review"} | result))
    print_result("benchmarks.review", hardware, **result)
    return 0


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.review", main))
