"""Scores one unit of a bulk job: its images, or the samples of its shard, into one file. Knows nothing of Ray.

A unit is done or it is not: what a worker that died had scored of it is scored again by another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
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
"""Pause after no server answered before all are asked again."""


@dataclass(frozen=True)
class Servers:
    """The servers that share the work.

    Args:
        settings: arguments for `AsyncClient`, whose url names them all.
    """

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, client: AsyncClient) -> Servers:
        """The servers that a client was made for."""
        return cls({field.name: getattr(client, field.name) for field in fields(Settings)})

    @property
    def wait_s(self) -> float:
        """How long to wait until one of them answers."""
        return self.settings["wait_s"]

    def waiting(self, wait_s: float) -> Servers:
        return Servers({**self.settings, "wait_s": wait_s})

    def client(self) -> AsyncClient:
        return AsyncClient(**self.settings)

    def clients(self) -> list[AsyncClient]:
        """A client for each of them, which waits for it no longer than for another one."""
        wait_s = min(self.wait_s, _WAIT_BEFORE_NEXT_S)
        return [
            AsyncClient(**{**self.settings, "url": url, "wait_s": wait_s}) for url in Settings(**self.settings).urls
        ]


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
    formats: list[str] = field(default_factory=list)
    """Names of the image formats that all of them take."""
    silent: list[str] = field(default_factory=list)
    """Why some of them do not answer."""


class UnitScorer:
    """Keeps its connections from one unit to the next. Used from one thread."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._schema = job.columns.schema()
        self._loop = asyncio.new_event_loop()
        self._client = job.servers.client()

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
        self._loop.run_until_complete(self._client.close())
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

    def _rows(self, unit: int) -> AsyncGenerator[Row, None]:
        versions = Versions(self._job.version, self._job.allow_version_change)
        return stream_rows(self._client, self._items(unit), self._job.columns, versions)

    def _items(self, unit: int) -> Iterator[Item]:
        plan = self._job.plan
        names = plan.names(unit)
        if plan.of_shards:
            yield from _samples(plan.resolved(names[0]))
            return
        for name in names:
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
    first = answers[0]
    differing = [answer for answer in answers if answer.version != first.version]
    if differing and not allow_version_change:
        problem = f"{first.url} has {first.version} and {differing[0].url} has {differing[0].version}"
        raise VersionChanged(f"the servers have different heads: {problem}")
    formats = set(first.formats).intersection(*(answer.formats for answer in answers))
    return Served(first.heads, first.version, sorted(formats), [str(failure) for failure in silent])


@dataclass(frozen=True)
class _Answer:
    """What one server says of itself."""

    url: str
    heads: list[Head]
    version: str | None
    formats: tuple[str, ...]


async def _answers(servers: Servers, names: list[str] | None) -> tuple[list[_Answer], list[ServerUnavailable]]:
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


async def _ask(client: AsyncClient, names: list[str] | None) -> _Answer:
    async with client:
        heads = await client.chosen_heads(names or None)
        (score,) = await client.score([np.full((32, 32, 3), 128, np.uint8)], [head.name for head in heads])
        return _Answer(str(client.url), heads, score.model_version or None, await client.formats())


def _samples(shard: str) -> Iterator[Item]:
    with _opened(shard) as file:
        for sample in iter_samples(shard, file=file):
            yield sample.key, sample.error or sample.image


def _opened(shard: str) -> AbstractContextManager[Any]:
    if not is_remote(shard):
        return nullcontext()
    try:
        return opened(shard)
    except Exception as error:  # file systems have exceptions of their own
        raise ShardError(shard, f"cannot be opened: {error}") from None
