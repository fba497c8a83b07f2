"""Scores one unit of a bulk job: its images, or the samples of its shard, into one file. Knows nothing of Ray.

A unit is done or it is not: what a worker that died had scored of it is scored again by another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, fields
from itertools import cycle
from typing import Any, Literal

import numpy as np

from clipsieve.client import AsyncClient
from clipsieve.exceptions import ClipsieveError, ServerUnavailable, ShardError, VersionChanged
from clipsieve.ray.part import Part, metadata_at, read_part, write_joined_part, write_part
from clipsieve.ray.plan import Plan
from clipsieve.ray.storage import RemoteImage, is_remote, joined, opened
from clipsieve.results import Head
from clipsieve.scoring import Columns, Item, Row, Versions, stream_rows
from clipsieve.settings import Settings
from clipsieve.shards import iter_samples

_WAIT_BEFORE_NEXT_S = 2.0
"""Pause after an address went away before the next one is asked."""
_SHUN_S = 30.0
"""Time during which an address that did not answer is tried last."""


@dataclass(frozen=True)
class Servers:
    """The servers that share the work, as arguments for `AsyncClient`.

    Args:
        settings: of each; they differ in their url.
        wait_s: how long to wait until one of them answers.
    """

    settings: tuple[Mapping[str, Any], ...]
    wait_s: float

    @classmethod
    def from_clients(cls, clients: list[AsyncClient], wait_s: float) -> Servers:
        settings = tuple({field.name: getattr(client, field.name) for field in fields(Settings)} for client in clients)
        return cls(settings, wait_s)

    def clients(self) -> list[AsyncClient]:
        wait_s = min(self.wait_s, _WAIT_BEFORE_NEXT_S)
        return [AsyncClient(**{**settings, "wait_s": wait_s}) for settings in self.settings]


@dataclass(frozen=True)
class Job:
    """Facts that every worker needs.

    Args:
        columns: of the rows.
        version: of the heads that score; None when it is not known yet.
    """

    plan: Plan
    servers: Servers
    columns: Columns
    version: str | None
    allow_version_change: bool


Status = Literal["done", "unavailable", "unwritten", "damaged", "failed"]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a unit.

    `done`: its file is there; a message says what of the table beside a shard has no partner. `unavailable`: no server
    answered. `unwritten`: its file could not be written. `damaged`: its shard cannot be read to the end. `failed`: what
    would go wrong for the other units too.
    """

    unit: int
    status: Status
    message: str = ""
    part: Part | None = None
    node: str = ""


@dataclass(frozen=True)
class Served:
    """Heads and version that the servers have in common."""

    heads: list[Head]
    version: str | None
    silent: list[str] = field(default_factory=list)
    """Why some of them do not answer."""


class UnitScorer:
    """Keeps its connections from one unit to the next. Used from one thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._schema = job.columns.schema()
        self._loop = asyncio.new_event_loop()
        self._clients = job.servers.clients()
        self._silent_since = [-_SHUN_S] * len(self._clients)

    def score(self, unit: int) -> Outcome:
        """Score a unit unless its file is there. Whatever is nobody's bug is an outcome."""
        plan = self._job.plan
        name = joined(plan.out, plan.part(unit))
        part = read_part(name, plan.run_id)
        if part is not None:  # of a worker that was lost before it could say so
            return Outcome(unit, "done", part=part)
        try:
            part, message = self._loop.run_until_complete(self._write(name, unit))
            return Outcome(unit, "done", message, part)
        except ServerUnavailable as error:
            return Outcome(unit, "unavailable", str(error))
        except ShardError as error:
            return Outcome(unit, "damaged", f"{plan.names(unit)[0]}: {error.problem}")
        except OSError as error:
            return Outcome(unit, "unwritten", f"{name}: {error}")
        except ClipsieveError as error:
            return Outcome(unit, "failed", f"{plan.part(unit)}: {error}")

    def close(self) -> None:
        for client in self._clients:
            self._loop.run_until_complete(client.close())
        self._loop.close()

    async def _write(self, name: str, unit: int) -> tuple[Part, str]:
        """Write the unit's file; of a shard with a table beside it, what has no partner there is the message."""
        plan, rows = self._job.plan, self._rows(unit)
        beside = plan.metadata_of(plan.names(unit)[0]) if plan.of_shards else None
        metadata = None if beside is None else metadata_at(beside)
        if beside is None or metadata is None:
            return await write_part(name, plan.run_id, rows, self._schema), ""
        part, unmatched = await write_joined_part(name, plan.run_id, rows, self._schema, metadata, beside)
        return part, f"{beside}: {summary}" if (summary := unmatched.summary()) else ""

    async def _rows(self, unit: int) -> AsyncGenerator[Row, None]:
        """The rows of a unit, from one server after the other when one goes away."""
        done = tried = 0
        moved_at = time.monotonic()
        versions = Versions(self._job.version, self._job.allow_version_change)
        for place in cycle(self._order(unit)):
            try:
                rows = stream_rows(self._clients[place], self._items(unit, done), self._job.columns, versions)
                async with aclosing(rows):
                    async for row in rows:
                        done, tried, moved_at = done + 1, 0, time.monotonic()
                        yield row
                return
            except ServerUnavailable:
                tried += 1
                self._silent_since[place] = time.monotonic()
                if tried >= len(self._clients) and time.monotonic() - moved_at >= self._job.servers.wait_s:
                    raise

    def _order(self, unit: int) -> list[int]:
        """Servers take turns; one that was silent a moment ago comes last."""
        count = len(self._clients)
        now = time.monotonic()
        order = [(unit + turn) % count for turn in range(count)]
        return sorted(order, key=lambda place: now - self._silent_since[place] < _SHUN_S)

    def _items(self, unit: int, start: int) -> Iterator[Item]:
        plan = self._job.plan
        names = plan.names(unit)
        if plan.of_shards:
            yield from _samples(plan.resolved(names[0]), start)
            return
        for name in names[start:]:
            yield name, RemoteImage(name) if is_remote(name) else plan.resolved(name)  # type: ignore[misc]


def served(servers: Servers, names: list[str] | None, allow_version_change: bool) -> Served:
    """Ask every server which heads it has, and score one small image to learn their version.

    Raises:
        ServerUnavailable: none answers, or all are still loading, also after `servers.wait_s`.
        UnknownHead: a server lacks a requested head.
        VersionChanged: two have different heads, and that is not allowed.
    """
    return asyncio.run(_served(servers, names, allow_version_change))


async def _served(servers: Servers, names: list[str] | None, allow_version_change: bool) -> Served:
    answers, silent = await _answers(servers, names)
    differing = [(url, version) for url, _, version in answers if version != answers[0][2]]
    if differing and not allow_version_change:
        problem = f"{answers[0][0]} has {answers[0][2]} and {differing[0][0]} has {differing[0][1]}"
        raise VersionChanged(f"the servers have different heads: {problem}")
    return Served(answers[0][1], answers[0][2], [str(failure) for failure in silent])


async def _answers(
    servers: Servers, names: list[str] | None
) -> tuple[list[tuple[str, list[Head], str | None]], list[ServerUnavailable]]:
    """Answers of the servers, at least one, and the errors of those that do not answer."""
    give_up_at = time.monotonic() + servers.wait_s
    while True:
        answers = await asyncio.gather(*(_ask(client, names) for client in servers.clients()), return_exceptions=True)
        silent = [answer for answer in answers if isinstance(answer, ServerUnavailable)]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ServerUnavailable):
                raise answer
        if answered := [answer for answer in answers if not isinstance(answer, BaseException)]:
            return answered, silent
        if time.monotonic() >= give_up_at:
            raise silent[0]


async def _ask(client: AsyncClient, names: list[str] | None) -> tuple[str, list[Head], str | None]:
    async with client:
        heads = await client.chosen_heads(names or None)
        (score,) = await client.score([np.full((32, 32, 3), 128, np.uint8)], [head.name for head in heads])
        return str(client.url), heads, score.model_version or None


def _samples(shard: str, start: int) -> Iterator[Item]:
    with _opened(shard) as file:
        for sample in iter_samples(shard, file=file, start=start):
            yield sample.key, sample.error or sample.image


def _opened(shard: str) -> AbstractContextManager[Any]:
    if not is_remote(shard):
        return nullcontext()
    try:
        return opened(shard)
    except Exception as error:  # file systems have exceptions of their own
        raise ShardError(shard, f"cannot be opened: {error}") from None
