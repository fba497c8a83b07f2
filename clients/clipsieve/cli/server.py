"""`clipsieve heads` and `clipsieve health`: what the server has, and whether it works."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import FAILURE, UNAVAILABLE, ServerOptions, Timeout, exits, fail
from clipsieve.printing import print_table
from clipsieve.progress import Reporter
from clipsieve.results import Head


@dataclass
class HeadsOptions:
    as_json: Annotated[bool, option("--json", "Print a JSON array.", group="Output")] = False


@dataclass
class HealthServerOptions(ServerOptions):
    timeout: Timeout = 5.0


@dataclass
class HealthOptions:
    deep: Annotated[
        bool, option("--deep", "Score a small image with every head; this is what happens anyway.", group="Check")
    ] = False
    shallow: Annotated[
        bool,
        option(
            "--shallow/--no-deep",
            "Only ask whether the server calls itself ready, which it does even when it cannot score.",
            group="Check",
        ),
    ] = False


@grouped
def heads(server: ServerOptions, output: HeadsOptions) -> None:
    """List the classifiers the server offers."""
    client = server.client()

    async def run() -> list[Head]:
        async with client:
            return await client.heads()

    with exits(Reporter()):
        served = asyncio.run(run())
    if output.as_json:
        print(json.dumps([asdict(head) for head in served], indent=2))
    else:
        names = ("head", "task", "labels", "classes", "thresholds", "notice")
        print_table(names, [_row(head) for head in served])


@grouped
def health(server: HealthServerOptions, check: HealthOptions) -> None:
    """Score a small image with every head; exit 0 if that works, 5 if nothing answers, 1 otherwise.

    A server that refuses the image because its queue is full works: the check says "busy" and exits with 0.
    """
    if check.deep and check.shallow:
        raise typer.BadParameter("--deep and --no-deep exclude each other")
    client = server.client()

    async def run():
        async with client:
            return await client.health(deep=not check.shallow, timeout_s=server.timeout)

    reporter = Reporter()
    with exits(reporter):
        answer = asyncio.run(run())
    if not answer.ok:
        fail(reporter, f"{answer.status}: {answer.message}", UNAVAILABLE if answer.status == "unavailable" else FAILURE)
    print(f"{answer.status}: {answer.message}")


def _row(head: Head) -> tuple[str, ...]:
    labels, classes = ", ".join(head.labels), ", ".join(head.class_names)
    return head.name, head.task, labels, classes, _thresholds(head), head.notice or ""


def _thresholds(head: Head) -> str:
    """`recall>=0.99 at 0.31, fpr<=0.001 at 0.94`"""
    rows = head.thresholds or ()
    named = zip(head.labels, rows, strict=False)
    return "; ".join(
        (f"{label}: " if len(rows) > 1 else "") + ", ".join(f"{each.operating_point} at {each.value:g}" for each in row)
        for label, row in named
        if row
    )
