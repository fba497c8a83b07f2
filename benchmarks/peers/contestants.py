"""The contestants: a server under load, the process without a server, and a command that reads a folder."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peers.clip_retrieval import run_folder
from benchmarks.peers.environments import QUIET, PeerError
from benchmarks.peers.limit import LAYOUTS
from benchmarks.peers.load import Ask, Throughput, offer, one_by_one, saturate
from benchmarks.peers.material import Material, PictureAnswer, difference
from benchmarks.peers.processes import Process
from benchmarks.peers.servers import Server

LIMIT_BATCHES = (1, 4, 16)
PASSES = 2

_Result = TypeVar("_Result")


class Contestant(ABC):
    """A peer that is ready to be measured; what it cannot do is None."""

    pid: int | None = None
    """Process that does the work, to measure its processor time and memory."""
    setting = ""
    """The best setting, such as `8 at once`; empty when there is no choice."""
    difference: float | None = None
    """Difference of its answers from ours, for a contestant whose every measurement gives a new one."""

    @abstractmethod
    def saturate(self, seconds: float) -> Throughput:
        """Score as many pictures as it can."""

    def warm(self, seconds: float) -> None:
        """Work that is not counted, after others had their turn: memory that lay idle may be slow at first."""
        self.saturate(seconds)

    def one_by_one(self, pictures: int | None = None) -> list[float] | None:
        """Milliseconds of each of so many pictures alone, or of all."""
        return None

    def offer(self, rate_per_s: float, seconds: float) -> list[float] | None:
        """Milliseconds of each answer at a steady rate."""
        return None


class Served(Contestant):
    """A server; its capacity is that at the best of some concurrencies."""

    def __init__(self, server: Server, pictures: Sequence[bytes]) -> None:
        self.server, self.pictures, self.pid = server, pictures, server.pid
        self.capacity_per_s, self.concurrency = 0.0, 1

    def choose(self, concurrencies: Sequence[int], seconds: float) -> None:
        """The concurrency that is best in two passes together: a slow moment of the machine does not choose."""
        rates = dict.fromkeys(concurrencies, 0.0)
        for _ in range(PASSES):
            for self.concurrency in concurrencies:
                rates[self.concurrency] += self.saturate(seconds / PASSES).images_per_s / PASSES
        self.concurrency = max(rates, key=lambda concurrency: rates[concurrency])
        self.capacity_per_s = rates[self.concurrency]
        self.setting = f"{self.concurrency} at once"

    def saturate(self, seconds: float) -> Throughput:
        return self._with_client(lambda ask: saturate(ask, self.pictures, self.concurrency, seconds))

    def one_by_one(self, pictures: int | None = None) -> list[float]:
        return self._with_client(lambda ask: one_by_one(ask, self.pictures[:pictures]))

    def offer(self, rate_per_s: float, seconds: float) -> list[float]:
        return self._with_client(lambda ask: offer(ask, self.pictures, rate_per_s, seconds))

    def _with_client(self, work: Callable[[Ask], Awaitable[_Result]]) -> _Result:
        async def connected() -> _Result:
            async with self.server.connect() as ask:
                return await work(ask)

        return asyncio.run(connected())


class WithoutServer(Contestant):
    """`benchmarks.peers.limit` in a process of its own, spoken to line by line."""

    def __init__(self, material: Material, log: Path, stack: ExitStack) -> None:
        files = [str(path) for path in (material.onnx, material.head, material.picture_folder)]
        serving = material.recipe.serving.model_dump_json(exclude_unset=True)
        command = [sys.executable, "-m", "benchmarks.peers.limit", *files, serving]
        self.process = stack.enter_context(Process(command, os.environ | QUIET, log, pipe=True))
        self.pid = self.process.pid
        self.batch_size, self.layout = 1, LAYOUTS[0]

    def choose(self, seconds: float) -> None:
        """The better way to lay out the work, and the batch size."""
        rates = []
        for self.layout in LAYOUTS:
            for self.batch_size in LIMIT_BATCHES:
                rates.append((self.saturate(seconds).images_per_s, self.batch_size, self.layout))
        _, self.batch_size, self.layout = max(rates)
        self.setting = f"batches of {self.batch_size}, decoding {self.layout}"

    def examine(self, pictures: int) -> list[PictureAnswer]:
        return [PictureAnswer(score=score) for score in self._ask(do="scores", pictures=pictures)["scores"]]

    def saturate(self, seconds: float) -> Throughput:
        return Throughput(**self._ask(do="run", seconds=seconds, batch_size=self.batch_size, layout=self.layout))

    def one_by_one(self, pictures: int | None = None) -> list[float]:
        return self._ask(do="one_by_one", pictures=pictures)["milliseconds"]

    def _ask(self, **request: Any) -> dict[str, Any]:
        popen = self.process.popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            popen.stdin.write(json.dumps(request) + "\n")
            popen.stdin.flush()
            return json.loads(popen.stdout.readline())
        except (OSError, ValueError) as error:
            raise PeerError(f"no answer: {self.process.last_words()}") from error


class FolderCommand(Contestant):
    """clip-retrieval: each run starts it anew, and its own count of its loop is taken."""

    def __init__(self, material: Material, folder: Path) -> None:
        self.material, self.folder, self._runs = material, folder, 0

    def warm(self, seconds: float) -> None:
        """Nothing: each run is a process of its own, and its loop begins when all is loaded."""

    def saturate(self, seconds: float) -> Throughput:
        """Embed the whole folder, however long that takes."""
        self._runs += 1
        run = run_folder(self.material, self.folder / f"clip-retrieval-{self._runs}")
        self.difference = difference(self.material, run.answers, 0.999)
        self.setting = f"its loop alone; {run.start_s:.0f} s beside it"
        return Throughput(run.images, run.seconds)
