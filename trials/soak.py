"""Hours of ordinary work: does the latency stay, does the memory stay.

    make demo                                          # builds what is served
    python -m trials.soak --minutes 30 --out soak.png  # half an hour

Measures what the server can do, then offers a share of it (80 %) with arrivals at random (Poisson), photographs and
drawn pictures of mixed sizes, and prints a line every ten seconds. In the end: p99 of the last sixth of the time
against the first (target: within 20 %), the memory of the server and its Python processes at the end against that
after the first sixth (target: under 3 % more), a picture, and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import Machine, machine, print_result
from benchmarks.offered_load import Answer, Caller, connect, percentile_ms, score_request
from benchmarks.server_processes import held_mib, resident_mib
from common.charts import empty_figure
from common.paths import repository_folder
from common.photos import calibration_pictures, verification_pictures
from recipes.schema import load_recipe
from serving.processes import shared_regions
from trials.prefixed_server import PrefixedServer

DEADLINE_S = 30.0
TICK_S = 0.002
CALIBRATION_S = 12.0
IN_FLIGHT = 32  # while measuring what the server can do
LARGEST_BYTES = 1_000_000
ENOUGH = 0.75  # share of the offered requests done in every interval; random arrivals make some intervals emptier


@dataclass(frozen=True)
class Sample:
    """Figures of one interval."""

    at_s: float
    """End of the interval, since the load began."""
    rate_per_s: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    resident_mib: dict[str, float]
    """Memory by process."""
    regions_mib: float
    """Shared by them, and part of what each holds."""


@dataclass(frozen=True)
class Verdict:
    offered_per_s: float
    requests: int
    errors: dict[str, int]
    p99_first_ms: float
    p99_last_ms: float
    resident_early_mib: float
    resident_end_mib: float

    @property
    def p99_ratio(self) -> float:
        return self.p99_last_ms / self.p99_first_ms

    @property
    def growth(self) -> float:
        return self.resident_end_mib / self.resident_early_mib - 1


class Recorded:
    """A caller that also enters each answer into a list, in the order they come."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.answers: list[Answer] = []

    async def __call__(self, request: bytes) -> None:
        self.answers.append(await self._caller(request))


def mixed_requests() -> list[bytes]:
    """A request for each picture, in an order that mixes small and large."""
    pictures = [*verification_pictures(), *calibration_pictures()]
    requests = [score_request(picture.data) for picture in pictures if len(picture.data) <= LARGEST_BYTES]
    random.Random(0).shuffle(requests)
    return requests


async def capacity_per_s(caller: Caller, requests: list[bytes], seconds: float) -> float:
    """Scores per second with many requests under way, the first third of the time left out."""
    turns, started = itertools.cycle(requests), time.perf_counter()
    answers: list[Answer] = []

    async def work() -> None:
        while time.perf_counter() < started + seconds:
            answers.append(await caller(next(turns)))

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    counted = [answer for answer in answers if started + seconds / 3 <= answer.end_s < started + seconds]
    return sum(answer.status == "OK" for answer in counted) / (seconds * 2 / 3)


async def offer(caller: Recorded, requests: Iterable[bytes], rate_per_s: float, seconds: float) -> None:
    """Send at random moments, so many a second on average whatever comes back, and wait for the last answer."""
    rng, turns = random.Random(0), itertools.cycle(requests)
    started, due, tasks = time.perf_counter(), 0.0, []
    while (elapsed := time.perf_counter() - started) < seconds:
        while due <= elapsed:
            tasks.append(asyncio.create_task(caller(next(turns))))
            due += rng.expovariate(rate_per_s)
        await asyncio.sleep(TICK_S)
        tasks = [task for task in tasks if not task.done()]
    await asyncio.gather(*tasks)


async def watch(pid: int, every_s: float, answers: list[Answer], take: Callable[[Sample], None]) -> None:
    """Take a sample at an interval, until cancelled."""
    started, seen = time.perf_counter(), 0
    for turn in itertools.count(1):
        await asyncio.sleep(max(0, started + turn * every_s - time.perf_counter()))
        fresh, seen = answers[seen:], len(answers)
        memory = resident_mib(pid), held_mib(shared_regions(pid))
        take(sample_of(fresh, time.perf_counter() - started, every_s, *memory))


def sample_of(
    answers: list[Answer], at_s: float, every_s: float, resident: dict[str, float], regions_mib: float
) -> Sample:
    errors = dict(Counter(answer.status for answer in answers if answer.status != "OK"))
    p50, p99 = percentile_ms(answers, 50), percentile_ms(answers, 99)
    return Sample(at_s, (len(answers) - sum(errors.values())) / every_s, p50, p99, errors, resident, regions_mib)


def verdict_of(answers: list[Answer], samples: list[Sample], offered_per_s: float, seconds: float) -> Verdict:
    start, window = min(answer.sent_s for answer in answers), seconds / 6
    first = [answer for answer in answers if answer.sent_s < start + window]
    last = [answer for answer in answers if answer.sent_s >= start + seconds - window]
    errors = Counter(answer.status for answer in answers if answer.status != "OK")
    totals = [(sample.at_s, sum(sample.resident_mib.values())) for sample in samples]
    early = [total for at_s, total in totals if at_s >= window][:3]
    return Verdict(
        offered_per_s, len(answers), dict(errors), percentile_ms(first, 99), percentile_ms(last, 99),
        float(np.median(early)), float(np.median([total for _, total in totals[-3:]])),
    )  # fmt: skip


async def soak(url: str, pid: int, arguments: argparse.Namespace) -> tuple[Verdict, list[Sample]]:
    """The load itself, after a measurement of what the server can do."""
    requests, seconds = mixed_requests(), arguments.minutes * 60
    samples: list[Sample] = []

    def take(sample: Sample) -> None:
        samples.append(sample)
        print(line_of(sample), file=sys.stderr, flush=True)

    async with connect(url, DEADLINE_S) as caller:
        capacity = arguments.capacity or await capacity_per_s(caller, requests, CALIBRATION_S)
        rate = capacity * arguments.share
        print(f"offering {rate:.1f} a second, {arguments.share:.0%} of {capacity:.1f}", file=sys.stderr, flush=True)
        recorded = Recorded(caller)
        watching = asyncio.create_task(watch(pid, arguments.every, recorded.answers, take))
        await offer(recorded, requests, rate, seconds)
        watching.cancel()
    return verdict_of(recorded.answers, samples, rate, seconds), samples


def line_of(sample: Sample) -> str:
    held = ", ".join(f"{name} {mib:.0f}" for name, mib in sample.resident_mib.items())
    errors = ", ".join(f"{count} {status}" for status, count in sample.errors.items()) or "no errors"
    rates = f"{sample.at_s:6.0f} s: {sample.rate_per_s:5.1f}/s, p50 {sample.p50_ms:.0f} ms, p99 {sample.p99_ms:.0f} ms"
    return f"{rates}, {errors}; MiB: {held}, shared {sample.regions_mib:.0f}"


def plot(samples: list[Sample], path: Path) -> None:
    """Latency above, memory of each process below."""
    minutes = [sample.at_s / 60 for sample in samples]
    figure = empty_figure(9, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    for name in ("p50_ms", "p99_ms"):
        above.plot(minutes, [getattr(sample, name) for sample in samples], label=name.removesuffix("_ms"))
    above.set(ylabel="latency, ms", ylim=(0, None), title="clipsieve: sustained load")
    for name in samples[0].resident_mib:
        below.plot(minutes, [sample.resident_mib.get(name, np.nan) for sample in samples], label=name)
    below.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    for axes in (above, below):
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trials.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--share", type=float, default=0.8, help="of the capacity that is offered (default %(default)s)"
    )
    parser.add_argument("--capacity", type=float, help="scores a second, instead of measuring it")
    parser.add_argument("--every", type=float, default=10, help="seconds between two lines (default %(default)s)")
    parser.add_argument("--out", type=Path, help="a picture, as PNG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments, hardware = parse(argv), machine()
    repository = repository_folder(load_recipe("demo"))
    with (
        tempfile.TemporaryDirectory(prefix="clipsieve-soak-") as temporary,
        PrefixedServer(repository, log_path=Path(temporary) / "tritonserver.log") as server,
    ):
        verdict, samples = asyncio.run(soak(server.grpc_url, server.pid, arguments))
    if arguments.out:
        plot(samples, arguments.out)
    report(verdict, samples, hardware)
    return 0


def report(verdict: Verdict, samples: list[Sample], hardware: Machine) -> None:
    print(f"{verdict.requests} requests, errors: {verdict.errors or 'none'}")
    slowest = min(sample.rate_per_s for sample in samples) / verdict.offered_per_s
    if slowest < ENOUGH:
        print(
            f"in one interval only {slowest:.0%} of what was offered was done: was the machine busy with other things?"
        )
    first, last = verdict.p99_first_ms, verdict.p99_last_ms
    print(f"p99 {first:.0f} ms at first, {last:.0f} ms at last: {verdict.p99_ratio - 1:+.1%}")
    early, end = verdict.resident_early_mib, verdict.resident_end_mib
    print(f"memory {early:.0f} MiB after a sixth of the time, {end:.0f} MiB at the end: {verdict.growth:+.1%}")
    ratios = {"p99_ratio": verdict.p99_ratio, "growth": verdict.growth}
    print_result("trials.soak", hardware, **asdict(verdict), **ratios, samples=[asdict(sample) for sample in samples])


if __name__ == "__main__":
    sys.exit(main())
