"""Two kinds of honest clients, over and over while a server is harmed: one that shows errors, one that waits them out.

Every request is accounted for: a lost one got neither a score nor an error within its deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipsieve import AsyncClient, ClipsieveError

GRACE_S = 5.0
"""Beyond its deadline, before a request is called lost."""


@dataclass(frozen=True)
class Request:
    sent_s: float
    """Time of sending, by time.monotonic."""
    ended_s: float
    outcome: str
    """`ok`, `wrong` (another score than the picture's), `lost`, or the code of an error."""


@dataclass
class Group:
    """Clients of one kind.

    Attributes:
        wait_s: how long they wait for a server that went away; 0 shows its absence at once.
        workers: how many requests are under way.
    """

    name: str
    wait_s: float
    workers: int
    timeout_s: float = 5.0
    requests: list[Request] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        return Counter(request.outcome for request in self.requests)

    def longest_gap_s(self) -> float:
        """The longest time in which no score came."""
        ended = sorted(request.ended_s for request in self.requests if request.outcome == "ok")
        return max((later - sooner for sooner, later in itertools.pairwise(ended)), default=float("inf"))

    def __str__(self) -> str:
        counts = self.counts()
        errors = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()) if code != "ok")
        return f"{self.name}: {counts['ok']} ok" + (f", {errors}" if errors else "")


def interactive() -> Group:
    return Group("interactive", wait_s=0, workers=4)


def bulk() -> Group:
    return Group("bulk", wait_s=30, workers=8)


class Load:
    """Requests of all groups, in a thread of their own, from entering to leaving.

    Args:
        pictures: encoded images; what each scores is learnt before the load begins.
    """

    def __init__(self, url: str, pictures: Sequence[bytes], groups: Sequence[Group]) -> None:
        self.groups = groups
        self._url, self._pictures = url, pictures
        self._scores: list[np.ndarray] = []
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def lost(self) -> int:
        return sum(group.counts()["lost"] for group in self.groups)

    @property
    def wrong(self) -> int:
        return sum(group.counts()["wrong"] for group in self.groups)

    async def _run(self) -> None:
        try:
            async with AsyncClient(self._url) as client:
                self._scores = [result.scores for result in await client.score(self._pictures)]
        finally:
            self._started.set()
        await asyncio.gather(*(self._run_group(group) for group in self.groups))

    async def _run_group(self, group: Group) -> None:
        async with AsyncClient(self._url, timeout_s=group.timeout_s, wait_s=group.wait_s) as client:
            await client.heads()  # fetched once, before the fault
            await asyncio.gather(*(self._work(client, group, worker) for worker in range(group.workers)))

    async def _work(self, client: AsyncClient, group: Group, worker: int) -> None:
        turn = worker
        while not self._stopping.is_set():
            sent = time.monotonic()
            outcome = await self._outcome(client, group, turn % len(self._pictures))
            group.requests.append(Request(sent, time.monotonic(), outcome))
            turn += group.workers
            await asyncio.sleep(0.01 if outcome == "ok" else 0.1)

    async def _outcome(self, client: AsyncClient, group: Group, index: int) -> str:
        within_s = group.timeout_s + group.wait_s + GRACE_S
        try:
            (result,) = await asyncio.wait_for(client.score([self._pictures[index]]), within_s)
        except asyncio.TimeoutError:  # not TimeoutError itself before Python 3.11
            return "lost"
        except ClipsieveError as error:
            return type(error).__name__
        if result.error is not None:
            return result.error.code
        return "ok" if np.abs(result.scores - self._scores[index]).max() <= 1e-5 else "wrong"
