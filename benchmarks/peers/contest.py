"""One run: every peer is started, checked and tuned; then all take turns, round after round, the others stopped."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contestants import Contestant, FolderCommand, Served, WithoutServer
from benchmarks.peers.environments import ENVIRONMENTS, PeerError
from benchmarks.peers.figures import Measured
from benchmarks.peers.material import CHECKED, Material, difference
from benchmarks.peers.pausing import Paused
from benchmarks.peers.processes import busy_s, cpu_s, resident_mib, wait_until
from benchmarks.peers.servers import CORES, Server, Service

START_DEADLINE_S = 300.0
IDLE_DEADLINE_S = 60.0
LOAD_SHARE = 0.8
"""Share of the slowest server's capacity at which all latencies are compared."""
WARM_S = 1.0
"""Longest uncounted work before each measurement."""


@dataclass(frozen=True)
class Settings:
    seconds: float
    """Length of each measurement."""
    rounds: int
    concurrencies: tuple[int, ...]
    alone: int | None = None
    """Pictures that are scored one after another in each round; all, if None."""


class Contest:
    """The peers that run, and what was measured of each; a context manager that ends them.

    A peer that is ready stands still, unless it is measured.
    """

    def __init__(self, material: Material, folder: Path, settings: Settings) -> None:
        self.material, self.folder, self.settings = material, folder, settings
        self.rows: dict[str, Measured] = {}
        self._contestants: dict[str, Contestant] = {}
        self._stack, self._paused = ExitStack(), Paused()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack, self._paused:  # all go on first: one that stands still ends by no signal but SIGKILL
            pass

    # ---- starting ----

    def add_limit(self) -> None:
        with self._attempt("limit") as row:
            row.weights = self.material.recipe.encoder.id
            limit = WithoutServer(self.material, self.folder / "limit.log", self._stack)
            answers = limit.examine(CHECKED)
            row.cold_start_s.append(time.perf_counter() - limit.process.started_s)
            row.difference = difference(self.material, answers, 1.0)
            limit.choose(self.settings.seconds)
            self._take_part("limit", limit)

    def add_service(self, service: Service) -> None:
        """Start it with each number of workers it may have, one beside the other, and keep the best."""
        with self._attempt(service.name) as row, ExitStack() as starting:  # one that fails ends at once
            row.weights = (service.material or self.material).recipe.encoder.id
            trials = [self._trial(service, workers, row, starting) for workers in service.workers]
            best, process = max(trials, key=lambda trial: trial[0].capacity_per_s)
            for served, other in trials:
                if served is not best:
                    other.close()
            self._stack.enter_context(process)
            starting.pop_all()
            self._take_part(service.name, best)

    def add_folder_command(self, name: str) -> None:
        with self._attempt(name) as row:
            row.weights = self.material.recipe.encoder.id
            ENVIRONMENTS[name].check()
            self._take_part(name, FolderCommand(self.material, self.folder))

    def _trial(self, service: Service, workers: int, row: Measured, starting: ExitStack) -> tuple[Served, ExitStack]:
        """The server at its best concurrency, stopped, and what ends it."""
        process = starting.enter_context(ExitStack())
        server = process.enter_context(service.start(workers, self.folder))
        served = self._tuned(service, server, row)
        if len(service.workers) > 1:
            served.setting += f", workers: {workers}"
            say(f"{service.name}: {served.capacity_per_s:.1f} images/s, {served.setting}")
        process.callback(self._paused.go_on, server.pid)
        self._paused.stop(server.pid)
        return served, process

    def _tuned(self, service: Service, server: Server, row: Measured) -> Served:
        """Wait for its first answer, see that its answers are right, and find its best concurrency."""
        material = service.material or self.material
        wait_for_answer(server, material.pictures[0])
        row.cold_start_s.append(time.perf_counter() - server.started_s)
        answers = asyncio.run(server.examine(material.pictures[:CHECKED]))
        row.difference = difference(material, answers, service.minimum_cosine, service.tolerance, service.even_alone)
        wait_until_idle(server.pid)
        served = Served(server, material.pictures)
        served.choose(self.settings.concurrencies, self.settings.seconds)
        return served

    def _take_part(self, name: str, contestant: Contestant) -> None:
        self._contestants[name] = contestant
        if contestant.pid is not None:
            self._paused.stop(contestant.pid)
        say(f"{name}: ready, {contestant.setting}")

    # ---- measuring ----

    def run_rounds(self) -> None:
        """Let all peers score what they can, one after another, then measure the latencies of each."""
        rates = self._equal_rates()
        for weights, rate in rates.items():
            say(f"equal load of {weights}: {rate:.1f} requests/s")
        for number in range(self.settings.rounds):
            say(f"round {number + 1} of {self.settings.rounds}")
            self._each(self._saturate)
            self._each(lambda contestant, row: self._latencies(contestant, row, rates[row.weights]))

    def _equal_rates(self) -> dict[str, float]:
        """Requests a second that all servers of the same weights get, by the weights."""
        groups: dict[str, list[Contestant]] = {}
        for name, contestant in self._contestants.items():
            groups.setdefault(self.rows[name].weights, []).append(contestant)
        return {weights: equal_rate(contestants) for weights, contestants in groups.items()}

    def _each(self, measure: Callable[[Contestant, Measured], None]) -> None:
        for name, contestant in list(self._contestants.items()):
            with self._attempt(name) as row, self._paused.awake(contestant.pid):
                contestant.warm(min(WARM_S, self.settings.seconds))
                measure(contestant, row)

    def _saturate(self, contestant: Contestant, row: Measured) -> None:
        pid = contestant.pid
        before, all_before = cpu_s(pid) if pid else 0.0, busy_s()
        rate = contestant.saturate(self.settings.seconds)
        row.busy.append((busy_s() - all_before) / rate.seconds / CORES)
        row.images_per_s.append(rate.images_per_s)
        row.setting = contestant.setting
        row.difference = row.difference if contestant.difference is None else contestant.difference
        if pid:
            row.cpu_ms.append(1000 * (cpu_s(pid) - before) / rate.images)
            row.resident_mib = resident_mib(pid)

    def _latencies(self, contestant: Contestant, row: Measured, rate_per_s: float) -> None:
        """Of pictures alone, then at the offered load."""
        alone = contestant.one_by_one(self.settings.alone)
        if alone is not None:
            row.alone_ms.append(alone)
        loaded = contestant.offer(rate_per_s, 2 * self.settings.seconds)
        if loaded is not None:
            row.loaded_ms.append(loaded)

    @contextmanager
    def _attempt(self, name: str) -> Iterator[Measured]:
        """A peer's row; an error is stored there, and ends that peer's part alone."""
        row = self.rows.setdefault(name, Measured(name))
        try:
            yield row
        except Exception as error:  # the peer's client library may raise anything
            row.problem = str(error) if isinstance(error, PeerError) else f"{type(error).__name__}: {error}"
            self._contestants.pop(name, None)
            say(f"{name}: {row.problem}")


def equal_rate(contestants: Iterable[Contestant]) -> float:
    """Requests a second that the slowest server carries with some room; 1 without servers."""
    return LOAD_SHARE * min((each.capacity_per_s for each in contestants if isinstance(each, Served)), default=1.25)


def wait_for_answer(server: Server, picture: bytes) -> None:
    """Ask until it answers.

    Raises:
        PeerError: it ended, refuses, or did not answer in time; the message has its last error.
    """
    problem = ""

    def answers() -> bool:
        nonlocal problem
        server.check()
        try:
            asyncio.run(server.examine([picture]))
        except PeerError:  # it is there, and refuses
            raise
        except Exception as error:  # of whichever library: not there yet
            problem = f"{type(error).__name__}: {error}"
            return False
        return True

    if not wait_until(answers, START_DEADLINE_S):
        raise PeerError(f"no answer within {START_DEADLINE_S:.0f} s: {problem}")


def wait_until_idle(pid: int) -> None:
    """Wait until all workers have loaded: less than a tenth of a core for half a second; a minute at most."""

    def is_idle() -> bool:
        before = cpu_s(pid)
        time.sleep(0.5)
        return cpu_s(pid) - before < 0.05

    wait_until(is_idle, IDLE_DEADLINE_S)


def say(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)
