"""`clipsieve bench`"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated

import typer

from clipsieve.bench import Figures, images_from, measure, rounded
from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import SOME_FAILED, InputOptions, Paths, ServerOptions, exits
from clipsieve.cli.run import started
from clipsieve.client import AsyncClient
from clipsieve.exceptions import ImageRejected, InputRefused
from clipsieve.images import ImageSource
from clipsieve.printing import print_table
from clipsieve.progress import Reporter

_GROUP = "Measurement"


@dataclass
class BenchOptions:
    """Options of the measurement."""

    count: Annotated[
        int,
        option("--count/-n", "Images offered at each concurrency.", group=_GROUP, min=1, show_default=True),
    ] = 1000
    concurrency: Annotated[
        str,
        option("--concurrency", "Images in flight, one measurement for each.", group=_GROUP, show_default=True),
    ] = "1,4,16,64"
    head: Annotated[
        list[str] | None,
        option("--head", "Heads to score with; may be repeated. By default all.", group=_GROUP, metavar="NAME"),
    ] = None
    as_json: Annotated[bool, option("--json", "Print a JSON array.", group=_GROUP)] = False

    def concurrencies(self) -> list[int]:
        try:
            numbers = [int(each) for each in self.concurrency.split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < 1 or max(numbers) > 4096:
            problem = f"{self.concurrency!r} is not a list of numbers from 1 to 4096, such as 1,4,16"
            raise typer.BadParameter(problem, param_hint="--concurrency")
        return numbers


@grouped
def bench(paths: Paths, inputs: InputOptions, options: BenchOptions, server: ServerOptions) -> None:
    """Measure images per second and latency at several concurrencies, with images from memory."""
    concurrencies = options.concurrencies()
    reporter = Reporter()
    with exits(reporter):
        images = (image for _, image in started(inputs.inputs(paths)))
        figures = asyncio.run(_bench(server.client(concurrency=max(concurrencies)), images, options, concurrencies))
    _print(figures, options.as_json)
    if any(each.failed for each in figures):
        reporter.say("some images failed: `clipsieve score` tells which and why")
        raise typer.Exit(SOME_FAILED)


async def _bench(
    client: AsyncClient, sources: Iterator[ImageSource | ImageRejected], options: BenchOptions, concurrencies: list[int]
) -> list[Figures]:
    images = images_from(sources, options.count)
    if not images:
        raise InputRefused("none of the images can be read")
    async with client:
        heads = [head.name for head in await client.chosen_heads(options.head or None)]
        return [rounded(each) async for each in measure(client, images, options.count, concurrencies, heads)]


def _print(figures: list[Figures], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(each) for each in figures], indent=2))
        return
    names = [field.name for field in fields(Figures)]
    print_table(names, [tuple(asdict(each).values()) for each in figures])
