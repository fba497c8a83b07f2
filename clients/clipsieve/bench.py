"""Measures how many images a second a server scores, and the latency, by the number of images in flight."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np

from clipsieve.client import AsyncClient
from clipsieve.exceptions import ImageRejected
from clipsieve.images import ImageSource, encoded
from clipsieve.pump import pump

_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Figures:
    """Figures at one concurrency."""

    concurrency: int
    images: int
    failed: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


def images_from(sources: Iterable[ImageSource | ImageRejected], count: int) -> list[bytes]:
    """The first readable images, at most `count` and 256 MiB: measured is the server, not the disk."""
    images: list[bytes] = []
    size = 0
    for source in sources:
        try:
            image = encoded(source)
        except ImageRejected:
            continue
        size += len(image)
        if len(images) == count or (images and size > _MOST_BYTES):
            break
        images.append(image)
    return images


async def measure(
    client: AsyncClient, images: Sequence[bytes], count: int, concurrencies: Sequence[int], heads: Sequence[str]
) -> AsyncGenerator[Figures, None]:
    """Offer `count` images, the given ones over and over, at each concurrency; a first round warms up."""
    await client.score(images[: max(concurrencies)], heads)
    for concurrency in concurrencies:
        yield await _measured(client, islice(cycle(images), count), concurrency, heads)


async def _measured(client: AsyncClient, images: Iterator[bytes], concurrency: int, heads: Sequence[str]) -> Figures:
    async def timed(image: bytes) -> tuple[float, bool]:
        started = time.perf_counter()
        (score,) = await client.score([image], heads)
        return time.perf_counter() - started, score.ok

    started = time.perf_counter()
    async with aclosing(pump(timed, images, concurrency)) as answers:
        results = [answer async for answer in answers]
    seconds = time.perf_counter() - started
    p50, p99 = np.percentile([latency for latency, _ in results], (50, 99)) * 1000
    failed = sum(not ok for _, ok in results)
    return Figures(concurrency, len(results), failed, len(results) / seconds, float(p50), float(p99))


def rounded(figures: Figures) -> Figures:
    """Round to the digits that mean something."""
    return replace(
        figures,
        images_per_s=round(figures.images_per_s, 1),
        p50_ms=round(figures.p50_ms, 1),
        p99_ms=round(figures.p99_ms, 1),
    )
