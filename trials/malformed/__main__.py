"""Malformed requests against the real server: refused or scored as the picture is, and a healthy server after.

    make demo  # builds what is served
    python -m trials.malformed --examples 2000

Sends `--examples` generated requests of each kind over HTTP and gRPC, while a client beside them scores a picture over
and over, whose scores must not change. Then, each on a server of its own, the requests known to end this release, with
and without larger stacks. Prints two tables and one JSON line; the exit status is 1 when anything went wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.machine import Machine, machine, print_result
from benchmarks.tables import print_table
from clipsieve import Client
from common.paths import repository_folder
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer
from trials.malformed import grpc_requests, http_requests
from trials.malformed.known import GUARD_STACK_BYTES, fates
from trials.malformed.wire import Answer, Case, Outcome, open_grpc, problem, send_grpc, send_http
from trials.prefixed_server import PrefixedServer

OUTCOMES: tuple[Outcome, ...] = ("refused", "closed", "scored", "silent")
Send = Callable[[Case], Answer]


@dataclass
class Kind:
    """Outcomes of all requests of one kind."""

    name: str
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    problems: list[str] = field(default_factory=list)
    healthy: bool = True
    """A real picture was scored afterwards."""


class Neighbour:
    """Scores one picture over and over in a thread, as an honest client beside the others."""

    def __init__(self, url: str) -> None:
        self.scored = 0
        self.wrong: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._score)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _score(self) -> None:
        with Client(self._url, timeout_s=10) as client:
            expected = client.score([http_requests.PICTURE])[0].scores
            while not self._stop.wait(0.01):
                result = client.score([http_requests.PICTURE])[0]
                self.scored += 1
                if not result.ok or abs(result.scores - expected).max() > 1e-5:
                    self.wrong.append(str(result.error or result.scores))


def tried(name: str, cases: st.SearchStrategy[Case], send: Send, honest_score: float, examples: int) -> Kind:
    """Send generated requests of one kind."""
    kind = Kind(name)

    @settings(
        max_examples=examples, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(cases)
    def try_one(case: Case) -> None:
        answer = send(case)
        kind.outcomes[answer.outcome] += 1
        if wrong := problem(case, answer, honest_score):
            kind.problems.append(f"{wrong}; sent {case.data[:300]!r}")

    try_one()
    return kind


def try_all(server: EmbeddedServer, examples: int, say: Callable[[str], None]) -> list[Kind]:
    """Try every kind over both protocols."""
    channel, infer = open_grpc(server.grpc_url)
    honest = send_grpc(infer, Case("honest", grpc_requests.message().SerializeToString())).scores[0]
    sends: dict[str, tuple[dict[str, st.SearchStrategy[Case]], Send]] = {
        "HTTP": (http_requests.KINDS, lambda case: send_http(server.http_url, case)),
        "gRPC": (grpc_requests.KINDS, lambda case: send_grpc(infer, case)),
    }
    results = []
    with channel, Client(server.grpc_url) as client:
        for protocol, (kinds, send) in sends.items():
            for name, cases in kinds.items():
                kind = tried(f"{protocol} {name}", cases, send, honest, examples)
                kind.healthy = client.health().ok
                say(f"{kind.name}: {dict(kind.outcomes)}, {len(kind.problems)} problems")
                results.append(kind)
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.malformed")
    parser.add_argument("--examples", type=int, default=2000, help="requests of each kind (default %(default)s)")
    parser.add_argument("--without-known", action="store_true", help="leave out those known to end the server")
    arguments, hardware = parser.parse_args(argv), machine()
    repository = repository_folder(load_recipe("demo"))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="clipsieve-malformed-") as temporary:
        log = Path(temporary) / "tritonserver.log"
        with PrefixedServer(repository, log_path=log) as server, Neighbour(server.grpc_url) as neighbour:
            kinds = try_all(server, arguments.examples, say)
        known = [] if arguments.without_known else fates(repository, Path(temporary), say)
    return report(kinds, neighbour, known, hardware)


def report(kinds: list[Kind], neighbour: Neighbour, known: list[dict[str, Any]], hardware: Machine) -> int:
    print_table(
        [
            {"kind": kind.name}
            | {name: kind.outcomes[name] for name in OUTCOMES}
            | {"problems": len(kind.problems), "healthy after": kind.healthy}
            for kind in kinds
        ]
    )
    print(f"a client beside them: {neighbour.scored} pictures scored, {len(neighbour.wrong)} wrong or failed")
    if known:
        guarded = f"with stacks of {GUARD_STACK_BYTES >> 20} MiB"
        print_table(known, {"request": "request", "bytes": "bytes", "plain": "as it comes", "guarded": guarded})
    problems = [f"{kind.name}: {line}" for kind in kinds for line in kind.problems] + neighbour.wrong
    for line in problems[:10]:
        print(f"problem: {line}", file=sys.stderr)
    beside = {"scored": neighbour.scored, "wrong": neighbour.wrong}
    print_result("trials.malformed", hardware, kinds=[asdict(kind) for kind in kinds], known=known, beside=beside)
    return 1 if problems or not all(kind.healthy for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
