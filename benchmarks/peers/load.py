"""The load, the same for every server: all at once, one picture at a time, and so many a second."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from benchmarks.offered_load import Answer, Caller, closed_loop, open_loop
from benchmarks.peers.environments import PeerError
from benchmarks.peers.material import PictureAnswer
from clipsieve import AsyncClient

REQUEST_TIMEOUT_S = 60.0

Ask = Callable[[bytes], Awaitable[PictureAnswer]]
"""One encoded picture → what the server says; any exception is a request that failed."""


@asynccontextmanager
async def our_client(url: str, heads: Sequence[str]) -> AsyncIterator[Ask]:
    """clipsieve's own client, asking for these heads' scores of one picture; the first head's is what it finds.

    Requests are bulk work, which may wait as long as the peers let theirs wait. What goes wrong is raised.
    """
    async with AsyncClient(url, timeout_s=REQUEST_TIMEOUT_S, priority="bulk") as client:
        await client.chosen_heads(heads)  # what a client asks once

        async def ask(picture: bytes) -> PictureAnswer:
            (result,) = await client.score([picture], heads)
            if result.error is not None:
                raise result.error
            return PictureAnswer(score=float(result.heads[heads[0]].scores[0]))

        yield ask


class InTurn(Caller):
    """Sends the pictures in turn, whatever request it is handed."""

    def __init__(self, ask: Ask, pictures: Sequence[bytes]) -> None:
        self._ask, self._pictures, self._turn = ask, pictures, count()

    async def __call__(self, request: bytes = b"") -> Answer:
        picture = self._pictures[next(self._turn) % len(self._pictures)]
        sent = time.perf_counter()
        try:
            await self._ask(picture)
            status = "OK"
        except Exception as error:  # of whichever library; it is counted
            status = type(error).__name__
        return Answer(sent, time.perf_counter() - sent, status)


@dataclass(frozen=True)
class Throughput:
    """A closed loop."""

    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


async def saturate(ask: Ask, pictures: Sequence[bytes], concurrency: int, seconds: float) -> Throughput:
    """Keep so many requests under way for so many seconds, and wait for the last.

    Raises:
        PeerError: a request failed.
    """
    started = time.perf_counter()
    answers = checked(await closed_loop(InTurn(ask, pictures), b"", concurrency, seconds))
    return Throughput(len(answers), max(answer.end_s for answer in answers) - started)


async def one_by_one(ask: Ask, pictures: Sequence[bytes]) -> list[float]:
    """Milliseconds for each picture, with nothing else under way."""
    caller = InTurn(ask, pictures)
    return [1000 * answer.seconds for answer in checked([await caller() for _ in pictures])]


async def offer(ask: Ask, pictures: Sequence[bytes], rate_per_s: float, seconds: float) -> list[float]:
    """Milliseconds of each answer to requests sent at a steady rate."""
    answers = await open_loop(InTurn(ask, pictures), b"", rate_per_s, seconds)
    return [1000 * answer.seconds for answer in checked(answers)]


def checked(answers: Sequence[Answer]) -> Sequence[Answer]:
    """
    Raises:
        PeerError: some are failures, which would make a fast peer of a broken one.
    """
    failed = [answer.status for answer in answers if answer.status != "OK"]
    if failed:
        raise PeerError(f"{len(failed)} of {len(answers)} requests failed, the first with {failed[0]}")
    return answers
