"""Ten times the load that the server can carry: what is served, what is refused, and how soon it is well again.

    make demo                                          # builds what is served
    python -m trials.overload --seconds 30 --rounds 3  # about 4 minutes

Each round measures the capacity (closed loop), offers ten times as much whatever is answered (open loop), sends single
requests from the moment the load ends, and then times interactive requests alone, beside bulk work that says so, and
beside the same work that does not. Nothing is retried. Prints a table and one JSON line; exits with 1 when a request
got neither a score nor a refusal within its deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import machine, print_result
from benchmarks.offered_load import (
    Answer,
    Caller,
    closed_loop,
    connect,
    counts,
    open_loop,
    percentile_ms,
    score_request,
    served_per_s,
)
from benchmarks.tables import print_table
from build.repository import install
from build.repository_queues import BULK
from build.repository_warmup import gradient_picture
from recipes.schema import Recipe, load_recipe
from serving.embedded import EmbeddedServer, ServerSettings

DEADLINE_S = 30.0  # the client's own default
CONCURRENCY = 32  # for the capacity, as the client's
BULK_CONCURRENCY = 64


@dataclass(frozen=True)
class Overload:
    """A load over capacity, and what came after it."""

    capacity_per_s: float
    idle_p50_ms: float
    offered: int
    statuses: dict[str, int]
    goodput_ratio: float
    """Scores per second while overloaded, as a share of the capacity."""
    served_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    longest_s: float
    """Longest latency of all answers."""
    first_score_s: float | None
    """Time from the end of the load to the first score of a request sent after it."""
    recovered_s: float | None
    """Time from the end of the load until every request is scored within three times the idle latency."""


@dataclass(frozen=True)
class Interactive:
    """Requests at a tenth of the capacity, and the bulk work beside them."""

    beside: str
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    bulk_per_s: float


async def overload(caller: Caller, picture: bytes, factor: float, seconds: float) -> Overload:
    request = score_request(picture)
    idle = await closed_loop(caller, request, 1, seconds / 15)
    capacity = rate(await closed_loop(caller, request, CONCURRENCY, seconds / 5))
    say(f"capacity {capacity:.0f}/s; offering {factor * capacity:.0f}/s for {seconds:.0f} s")
    load = asyncio.create_task(open_loop(caller, request, factor * capacity, seconds))
    await asyncio.sleep(seconds)
    end = time.perf_counter()
    after = await open_loop(caller, request, min(20, capacity / 4), seconds / 6)
    answers = await load
    return Overload(
        capacity_per_s=capacity,
        idle_p50_ms=percentile_ms(idle, 50),
        offered=len(answers),
        statuses=counts(answers),
        goodput_ratio=rate(answers, seconds) / capacity,
        served_p99_ms=percentile_ms(answers, 99),
        refused_p50_ms=percentile_ms(answers, 50, "UNAVAILABLE"),
        refused_p99_ms=percentile_ms(answers, 99, "UNAVAILABLE"),
        longest_s=max(answer.seconds for answer in answers),
        first_score_s=min((answer.end_s - end for answer in after if answer.status == "OK"), default=None),
        recovered_s=recovered_after(after, end, 3 * percentile_ms(idle, 50) / 1000),
    )


def rate(answers: Sequence[Answer], seconds: float | None = None) -> float:
    """Scores per second from the first request to the last answer, or in the first `seconds`."""
    start = answers[0].sent_s
    end = max(answer.end_s for answer in answers) if seconds is None else start + seconds
    return served_per_s(answers, start, end)


def recovered_after(after: Sequence[Answer], end_s: float, limit_s: float) -> float | None:
    """Seconds from `end_s` to the first answer from which on all are scores within the limit; None if never."""
    slow = [index for index, answer in enumerate(after) if answer.status != "OK" or answer.seconds > limit_s]
    first = slow[-1] + 1 if slow else 0
    return after[first].end_s - end_s if first < len(after) else None


async def interactive(caller: Caller, picture: bytes, capacity: float, seconds: float) -> list[Interactive]:
    """Alone, beside bulk work of priority 2, and beside the same work without a priority."""
    rows = []
    for beside, bulk in {
        "nothing": None,
        "bulk": score_request(picture, BULK),
        "unmarked bulk": score_request(picture),
    }.items():
        say(f"interactive requests beside {beside}")
        work = asyncio.create_task(closed_loop(caller, bulk, BULK_CONCURRENCY, 1.2 * seconds)) if bulk else None
        await asyncio.sleep(seconds / 10)
        answers = await open_loop(caller, score_request(picture), capacity / 10, seconds)
        bulk_rate = rate(await work) if work else 0.0
        rows.append(
            Interactive(beside, percentile_ms(answers, 50), percentile_ms(answers, 99), counts(answers), bulk_rate)
        )
    return rows


async def measure(url: str, picture: bytes, arguments: argparse.Namespace) -> list[tuple[Overload, list[Interactive]]]:
    rounds = []
    async with connect(url, DEADLINE_S) as caller:
        for number in range(arguments.rounds):
            say(f"round {number + 1} of {arguments.rounds}")
            loaded = await overload(caller, picture, arguments.factor, arguments.seconds)
            beside = await interactive(caller, picture, loaded.capacity_per_s, arguments.seconds / 3)
            rounds.append((loaded, beside))
    return rounds


def served_recipe(queue_timeout_ms: int | None) -> Recipe:
    recipe = load_recipe("demo")
    if queue_timeout_ms is None:
        return recipe
    serving = recipe.serving.model_copy(update={"queue_timeout_ms": queue_timeout_ms})
    return recipe.model_copy(update={"serving": serving})


def report(rounds: list[tuple[Overload, list[Interactive]]]) -> None:
    print_table([asdict(row) for row, _ in rounds])
    print_table([asdict(row) for _, rows in rounds for row in rows])


def say(text: str) -> None:
    print(f"overload: {text}", file=sys.stderr, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trials.overload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="of the overload (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=float, default=10, help="times the capacity (default %(default)s)")
    parser.add_argument("--edge", type=int, default=1200, help="pixels of the square JPEG (default %(default)s)")
    parser.add_argument("--queue-timeout-ms", type=int, help="instead of the recipe's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments, hardware = parse(argv), machine()
    recipe = served_recipe(arguments.queue_timeout_ms)
    with tempfile.TemporaryDirectory(prefix="clipsieve-overload-") as temporary:
        folder = Path(temporary)
        install(recipe, folder / "models")
        log = folder / "tritonserver.log"
        with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(log)) as server:
            rounds = asyncio.run(measure(server.grpc_url, gradient_picture(arguments.edge), arguments))
    report(rounds)
    limits = {"max_queue_size": recipe.serving.max_queue_size, "queue_timeout_ms": recipe.serving.queue_timeout_ms}
    rows = [asdict(loaded) | {"interactive": [asdict(row) for row in beside]} for loaded, beside in rounds]
    print_result("trials.overload", hardware, rounds=rows, **limits)
    return 1 if any(set(loaded.statuses) - {"OK", "UNAVAILABLE"} for loaded, _ in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
