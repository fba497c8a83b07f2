"""Malformed requests against the real server: refused or scored as the picture is, and a healthy server after.

    make demo  # builds what is served
    python -m trials.malformed --examples 2000
    python -m trials.malformed --gateway   # the same for the gateway in front of it

Sends `--examples` generated requests of each kind over HTTP and gRPC, while a client beside them scores a picture over
and over, whose scores must not change. Then, each on a server of its own, the requests known to end this release, with
and without larger stacks. The gateway must also refuse as it documents, live on, and hold nothing after. Prints
two tables and one JSON line; the exit status is 1 when anything went wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.gateway import running_gateway
from benchmarks.machine import Machine, machine, print_result
from benchmarks.tables import print_table
from clipsieve import Client, ClipsieveError
from common.paths import repository_folder
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer
from trials.malformed import gateway_requests, grpc_requests, http_requests
from trials.malformed.gateway import LIMITS, leftovers, score_through, send_gateway
from trials.malformed.known import GUARD_STACK_BYTES, fates
from trials.malformed.wire import TOLERANCE, Answer, Case, Outcome, open_grpc, problem, send_grpc, send_http
from trials.prefixed_server import PrefixedServer

OUTCOMES: tuple[Outcome, ...] = ("refused", "closed", "scored", "silent", "undocumented")
Score = Callable[[], Sequence[float]]
"""Scores the honest picture."""
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

    def __init__(self, score: Score) -> None:
        self.scored = 0
        self.wrong: list[str] = []
        self._score_picture = score
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._score)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _score(self) -> None:
        expected = self._score_picture()
        while not self._stop.wait(0.01):
            try:
                scores = self._score_picture()
            except (OSError, ValueError, ClipsieveError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            else:
                self.scored += 1
                if any(abs(score - other) > TOLERANCE for score, other in zip(scores, expected, strict=True)):
                    self.wrong.append(str(scores))


@contextmanager
def scorer(url: str) -> Iterator[Score]:
    """Scores the honest picture by Triton itself."""
    with Client(url, timeout_s=10) as client:

        def score() -> Sequence[float]:
            result = client.score([http_requests.PICTURE])[0]
            if result.error is not None:
                raise result.error
            return result.scores.tolist()

        yield score


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


def try_gateway(server: EmbeddedServer, address: str, examples: int, say: Callable[[str], None]) -> list[Kind]:
    """Try every kind of the gateway's."""
    (honest,) = score_through(address)
    results = []
    for name, cases in gateway_requests.KINDS.items():
        kind = tried(f"gateway {name}", cases, lambda case: send_gateway(address, case), honest, examples)
        kind.healthy = server.poll() is None and score_through(address) == (honest,)
        say(f"{kind.name}: {dict(kind.outcomes)}, {len(kind.problems)} problems")
        results.append(kind)
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.malformed")
    parser.add_argument("--examples", type=int, default=2000, help="requests of each kind (default %(default)s)")
    parser.add_argument("--without-known", action="store_true", help="leave out those known to end the server")
    parser.add_argument("--gateway", action="store_true", help="to the gateway in front of the server")
    arguments, hardware = parser.parse_args(argv), machine()
    repository = repository_folder(load_recipe("demo"))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    known: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="clipsieve-malformed-") as temporary:
        folder = Path(temporary)
        with PrefixedServer(repository, log_path=folder / "tritonserver.log") as server:
            if arguments.gateway:
                with running_gateway(server.grpc_url, folder, *LIMITS) as (port, _):
                    address = f"127.0.0.1:{port}"
                    with Neighbour(lambda: score_through(address)) as neighbour:
                        kinds = try_gateway(server, address, arguments.examples, say)
                    kinds[-1].problems += leftovers(address)
            else:
                with scorer(server.grpc_url) as score, Neighbour(score) as neighbour:
                    kinds = try_all(server, arguments.examples, say)
        if not (arguments.gateway or arguments.without_known):
            known = fates(repository, folder, say)
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
