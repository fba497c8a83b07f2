"""The load: clipsieve's own client asking for one picture at a time, and prepared requests of several pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count, cycle

from benchmarks.growth.rounds import Case, rotated
from benchmarks.offered_load import Answer, Caller, closed_loop, connect, open_loop, service_pb2
from benchmarks.peers.load import REQUEST_TIMEOUT_S, Ask, Throughput, checked, our_client, saturate
from build.repository_queues import BULK
from clipsieve.transport import image_tensor

CONCURRENCIES = (4, 8, 16, 32)
GOOD_ENOUGH = 0.97
"""Share of the best rate that is enough: the lowest concurrency that reaches it is taken."""


def saturated(
    url: str, heads: Sequence[str], pictures: Sequence[bytes], concurrency: int, seconds: float
) -> Throughput:
    """So many pictures under way all the time.

    Raises:
        PeerError: a request failed.
    """

    async def run() -> Throughput:
        async with our_client(url, heads) as ask:
            return await saturate(ask, pictures, concurrency, seconds)

    return asyncio.run(run())


def one_by_one(
    targets: Mapping[Case, tuple[str, Sequence[str]]], pictures: Sequence[bytes], seconds: float
) -> dict[Case, list[float]]:
    """Milliseconds of each answer, with nothing else under way; a picture goes to all targets before the next does.

    Args:
        targets: (url, heads) by case.
    """

    async def run() -> dict[Case, list[float]]:
        async with AsyncExitStack() as stack:
            asks = {case: await stack.enter_async_context(our_client(*target)) for case, target in targets.items()}
            await _in_turns(asks, pictures[:1], 0)  # warms up
            return await _in_turns(asks, pictures, seconds)

    return asyncio.run(run())


async def _in_turns(asks: Mapping[Case, Ask], pictures: Sequence[bytes], seconds: float) -> dict[Case, list[float]]:
    """One picture at least."""
    cases, taken, end = list(asks), {case: [] for case in asks}, time.perf_counter() + seconds
    for number, picture in enumerate(cycle(pictures)):
        for case in rotated(cases, number % len(cases)):
            if len(cases) > 1:  # not timed: the one before has left its own data in the caches
                await asks[case](picture)
            started = time.perf_counter()
            await asks[case](picture)
            taken[case].append(1000 * (time.perf_counter() - started))
        if time.perf_counter() >= end:
            break
    return taken


def best_concurrency(url: str, heads: Sequence[str], pictures: Sequence[bytes], seconds: float) -> int:
    saturated(url, heads, pictures, CONCURRENCIES[0], seconds / 2)  # warms up
    return smallest_good({each: saturated(url, heads, pictures, each, seconds).images_per_s for each in CONCURRENCIES})


def smallest_good(rates: Mapping[int, float]) -> int:
    """The smallest concurrency whose rate is nearly the best."""
    return min(concurrency for concurrency, rate in rates.items() if rate >= GOOD_ENOUGH * max(rates.values()))


# ---- prepared requests, of all heads ----


class RequestsInTurn(Caller):
    """Sends prepared requests one after another, whichever it is handed."""

    def __init__(self, caller: Caller, requests: Sequence[bytes]) -> None:
        self._caller, self._requests, self._turn = caller, requests, count()

    async def __call__(self, request: bytes = b"") -> Answer:
        return await self._caller(self._requests[next(self._turn) % len(self._requests)])


def group_requests(pictures: Sequence[bytes], size: int) -> list[bytes]:
    """One serialised request of `size` pictures for each place to begin at. As bulk work, which may wait."""
    doubled = list(pictures) * (size // len(pictures) + 2)
    return [_group_request(doubled[start : start + size]) for start in range(len(pictures))]


def _group_request(pictures: Sequence[bytes]) -> bytes:
    tensor = image_tensor(*pictures)
    request = service_pb2.ModelInferRequest(model_name="image_score", raw_input_contents=[tensor.data])
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    request.parameters["priority"].int64_param = BULK
    return request.SerializeToString()


def kept_busy(url: str, requests: Sequence[bytes], concurrency: int, seconds: float) -> Sequence[Answer]:
    """So many requests under way all the time.

    Raises:
        PeerError: one failed.
    """
    return checked(asyncio.run(_through(url, requests, lambda caller: closed_loop(caller, b"", concurrency, seconds))))


def offered(url: str, requests: Sequence[bytes], rate_per_s: float, seconds: float) -> list[Answer]:
    """So many requests a second whatever is answered; refusals are answers, too."""
    return asyncio.run(_through(url, requests, lambda caller: open_loop(caller, b"", rate_per_s, seconds)))


async def _through(
    url: str, requests: Sequence[bytes], loop: Callable[[Caller], Awaitable[list[Answer]]]
) -> list[Answer]:
    async with connect(url, REQUEST_TIMEOUT_S) as caller:
        return await loop(RequestsInTurn(caller, requests))


def per_second(answers: Sequence[Answer]) -> float:
    """Answers a second, from the first request to the last answer."""
    return len(answers) / (max(answer.end_s for answer in answers) - min(answer.sent_s for answer in answers))
