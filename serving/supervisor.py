"""Restarts the embedded server when it no longer works, as an orchestrator would restart a container.

`python -m serving.embedded` runs under it. It looks at the server's processes and scores a picture at an interval,
and acts when the server ended, a Python process is dead or stopped, or nothing is answered any more. A server that is
merely busy is left alone.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from common.triton_messages import ENSEMBLES
from serving.no_proxy import grpc_client, urlopen
from serving.probe import Finding, probe
from serving.processes import broken_stubs
from serving.proof import ProofMissed
from serving.triton_wheel import ServingError
from serving.tritonserver import EmbeddedServer

_METRIC = re.compile(
    r'^nv_inference_(request_success|pending_request_count)\{model="([^"]+)"[^}]*\} (\S+)', re.MULTILINE
)


@dataclass(frozen=True)
class Pace:
    """How often the server is looked at, and how often it may be restarted."""

    interval_s: float = 10
    """Time between two looks. A server that ended is noticed at once."""
    deadline_s: float = 10
    """Time in which a probe must be answered."""
    patience: int = 3
    """Failed probes in a row before a restart; a dead or stopped process needs none. A server in which nothing
    finishes from the first of them to the last hangs, so a batch must take less than all of them together."""
    first_pause_s: float = 1
    """Pause before the second restart in a row; each further pause is twice as long."""
    longest_pause_s: float = 60
    max_restarts: int = 5
    """Most restarts within `window_s`; then the supervisor gives up."""
    window_s: float = 600


@dataclass(frozen=True)
class Work:
    """Requests that the server has finished, and those that wait, by model (all its versions together)."""

    finished: dict[str, float]
    waiting: dict[str, float]


class Supervisor:
    """Keeps one server working.

    Args:
        server: it runs already.
        pace: see there.
        say: takes one line for the operator; by default it goes to stderr with the time.
    """

    def __init__(self, server: EmbeddedServer, pace: Pace | None = None, say: Callable[[str], None] | None = None):
        self.server = server
        self.pace = pace or Pace()
        self.say = say or say_on_stderr
        self._restarted_at: list[float] = []

    def run(self) -> NoReturn:
        """Watch and restart until a signal's exception ends it.

        Raises:
            ServingError: the server was restarted too often.
        """
        while True:
            self.restart(self.next_problem())

    def next_problem(self) -> str:
        """Block until the server needs a restart; returns the reason."""
        failures = 0
        before_failures: Work | None = None
        while True:
            status = self.server.wait(self.pace.interval_s)
            if status is not None:
                return f"tritonserver ended {ending(status)}"
            if broken := broken_stubs(self.server.pid):
                return "; ".join(broken)
            before = before_failures or self.work()
            finding = self.look(before)
            if finding is None:
                failures = 0
                before_failures = None
                continue
            failures += 1
            before_failures = before
            if finding.is_final or failures >= self.pace.patience:
                return f"{finding} ({failures} probes in a row)" if failures > 1 else str(finding)
            self.say(f"a probe failed, looking again in {self.pace.interval_s:g} s: {finding}")

    def look(self, before: Work) -> Finding | None:
        """Probe once; None for a server that works, however slowly: something was finished since `before`."""
        with grpc_client(self.server.grpc_url) as client:
            finding = probe(client, self.server.picture, self.pace.deadline_s)
        if finding is None or finding.kind == "busy":
            return None
        return None if finding.kind == "late" and not hung_models(before, self.work()) else finding

    def work(self) -> Work:
        """The server's own counters; empty when they cannot be had."""
        try:
            with urlopen(self.server.metrics_url, timeout=self.pace.deadline_s) as answer:
                return work_from_metrics(answer.read().decode())
        except OSError:
            return Work({}, {})

    def restart(self, reason: str) -> None:
        """Start the server again, trying until it answers.

        Raises:
            ServingError: too many restarts, or a start after which it answers otherwise than its build verified
                (`ProofMissed`), which another one would not change.
        """
        while True:
            self._count_restart(reason)
            self.say(f"restarting: {reason}")
            try:
                self.server.stop(grace_s=min(5, self.server.exit_timeout_s))
                time.sleep(pause_s(self.pace, len(self._restarted_at)))
                self.server.start_again()
            except ProofMissed:
                raise
            except ServingError as error:
                reason = str(error)
            else:
                self.say(f"serving again on the same ports (pid {self.server.pid})")
                return

    def _count_restart(self, reason: str) -> None:
        now = time.monotonic()
        self._restarted_at = [at for at in self._restarted_at if at > now - self.pace.window_s]
        if len(self._restarted_at) >= self.pace.max_restarts:
            raise ServingError(
                f"restarted {len(self._restarted_at)} times within {self.pace.window_s / 60:g} minutes, giving up: "
                f"{reason}; end of {self.server.log_path}:\n{self.server.log_tail()}"
            )
        self._restarted_at.append(now)


def pause_s(pace: Pace, restarts: int) -> float:
    """Pause before the restart that is the `restarts`-th of the window; none before the first."""
    return 0.0 if restarts <= 1 else min(pace.longest_pause_s, pace.first_pause_s * 2 ** (restarts - 2))


def work_from_metrics(text: str) -> Work:
    """The counters in Prometheus's text format."""
    work = Work({}, {})
    for metric, model, value in _METRIC.findall(text):
        counts = work.finished if metric == "request_success" else work.waiting
        counts[model] = counts.get(model, 0) + float(value)
    return work


def hung_models(before: Work, after: Work) -> list[str]:
    """Models that finished nothing in between although requests wait, and ensembles that finished nothing at all.

    `before` and `after` are of a time in which probes waited in vain: a busy server finishes other requests meanwhile.
    """
    idle = [model for model in after.finished if after.finished[model] <= before.finished.get(model, 0)]
    if not after.finished or all(model in idle for model in ENSEMBLES):
        return list(ENSEMBLES)
    return [model for model in idle if before.waiting.get(model) and after.waiting.get(model)]


def ending(status: int) -> str:
    """How a process ended, by its exit status: `with status 1`, `by SIGKILL`."""
    if status >= 0:
        return f"with status {status}"
    return f"by {signal.Signals(-status).name}"


def say_on_stderr(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} serving.supervisor: {line}", file=sys.stderr, flush=True)
