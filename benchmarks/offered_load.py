"""Requests offered to a server: so many a second whatever it answers (open loop), or so many at a time (closed loop).

Each answer is kept with its gRPC status, so that a benchmark can count what was served, refused or never answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as _service_pb2

service_pb2: Any = _service_pb2  # its messages are made at import, which pyright cannot see
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TICK_S = 0.002


@dataclass(frozen=True)
class Answer:
    """The outcome of one request."""

    sent_s: float
    """Time of sending, by time.perf_counter."""
    seconds: float
    status: str
    """OK, UNAVAILABLE (refused), DEADLINE_EXCEEDED (never answered) or another name of gRPC's."""

    @property
    def end_s(self) -> float:
        return self.sent_s + self.seconds


class Caller:
    """One connection; a request is sent as the bytes that `score_request` made."""

    def __init__(self, channel: grpc.aio.Channel, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._infer = channel.unary_unary(METHOD)

    async def __call__(self, request: bytes) -> Answer:
        sent = time.perf_counter()
        try:
            await self._infer(request, timeout=self.deadline_s)
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        return Answer(sent, time.perf_counter() - sent, status)


@asynccontextmanager
async def connect(url: str, deadline_s: float) -> AsyncIterator[Caller]:
    """A connection without retries: every refusal is seen."""
    options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(url, options) as channel:
        yield Caller(channel, deadline_s)


def score_request(
    image: bytes, priority: int | None = None, timeout_us: int | None = None, model: str = "image_score"
) -> bytes:
    """A serialised request for every head's score of one encoded image, or for another model's answer.

    Args:
        image: an encoded image file.
        priority: 1 interactive, 2 bulk; None leaves it to the server.
        timeout_us: how long the request may wait in each queue, if less than the server's limit.
        model: `image_score`, or `image_embedding`.
    """
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
    for name, value in {"priority": priority, "timeout": timeout_us}.items():
        if value is not None:
            request.parameters[name].int64_param = value
    return request.SerializeToString()


async def open_loop(caller: Caller, request: bytes, rate_per_s: float, seconds: float) -> list[Answer]:
    """Send at a steady rate for so many seconds; all answers, in the order sent."""
    started, tasks = time.perf_counter(), []
    while (elapsed := time.perf_counter() - started) < seconds:
        due = math.ceil(elapsed * rate_per_s) - len(tasks)
        tasks += [asyncio.create_task(caller(request)) for _ in range(due)]
        await asyncio.sleep(TICK_S)
    return await asyncio.gather(*tasks)


async def closed_loop(caller: Caller, request: bytes, concurrency: int, seconds: float) -> list[Answer]:
    """Keep `concurrency` requests under way for so many seconds; all answers."""
    end = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def worker() -> None:
        while True:
            answers.append(await caller(request))
            if time.perf_counter() >= end:
                break
            if answers[-1].status != "OK":
                await asyncio.sleep(0.05)  # as a client that backs off before it tries again

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return answers


def counts(answers: Sequence[Answer]) -> dict[str, int]:
    """Answers by status."""
    return dict(Counter(answer.status for answer in answers))


def served_per_s(answers: Sequence[Answer], start_s: float, end_s: float) -> float:
    """Scores that came back between two moments, per second."""
    return sum(answer.status == "OK" and start_s <= answer.end_s <= end_s for answer in answers) / (end_s - start_s)


def percentile_ms(answers: Sequence[Answer], percent: float, status: str = "OK") -> float:
    """A percentile of the latencies of the answers with that status; NaN when there are none."""
    seconds = [answer.seconds for answer in answers if answer.status == status]
    return 1000 * float(np.percentile(seconds, percent)) if seconds else math.nan
