"""Asks Triton for scores, through the Python client, and knows which heads there are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from clipsieve import (
    AccessDenied,
    AsyncClient,
    ClipsieveError,
    Head,
    NotClipsieve,
    Score,
    ServerUnavailable,
    UnknownHead,
)
from serving.gateway.health import HealthCheck
from serving.gateway.problems import Problem


class Scorer:
    """Triton, as the gateway sees it. Methods raise Problem.

    Args:
        url: its address.
        timeout_s: deadline of one inference.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._client = AsyncClient(url, timeout_s=timeout_s)
        self.health = HealthCheck(self._client)
        self._versions: set[str] = set()
        self._reading: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        await self.health.close()
        await self._client.close()

    async def heads(self, names: Sequence[str] | None = None) -> list[Head]:
        """The heads of these names; all without names."""
        try:
            return await self._client.chosen_heads(names)
        except ClipsieveError as error:
            raise problem_from(error) from None

    async def score(self, images: Sequence[bytes | memoryview], heads: Sequence[Head]) -> list[Score]:
        """One result for each image; of many, each may fail alone."""
        try:
            if len(images) == 1:
                scores = [await self._client.score_one(images[0], heads)]
            else:
                scores = await self._client.score(list(map(bytes, images)), [head.name for head in heads])
        except ClipsieveError as error:
            raise problem_from(error) from None
        self._note_versions(scores)
        return scores

    def _note_versions(self, scores: Sequence[Score]) -> None:
        """Read the heads again when another version of one has answered: its thresholds may be others."""
        versions = {head.version for score in scores for head in score.heads.values()}
        if versions <= self._versions:
            return
        if self._versions and (self._reading is None or self._reading.done()):
            self._reading = asyncio.ensure_future(self._read_heads())
        self._versions |= versions

    async def _read_heads(self) -> None:
        try:
            await self._client.heads()
        except ClipsieveError:
            self._versions.clear()  # the next answer asks again


def problem_from(error: ClipsieveError) -> Problem:
    """The refusal of a whole request, for an error of the client."""
    if isinstance(error, ServerUnavailable):
        return Problem("SERVER_UNAVAILABLE", _without_address(str(error)))
    if isinstance(error, UnknownHead):
        return Problem("UNKNOWN_HEAD", str(error)[:500])
    if isinstance(error, (NotClipsieve, AccessDenied)):
        return Problem("SERVER_FAILED", "what answers as Triton is no clipsieve server, or refuses the gateway")
    return Problem("SERVER_FAILED", str(error)[:500])


def _without_address(message: str) -> str:
    """Take Triton's address out of a message: it is nobody's business outside."""
    if "loading" in message:
        return "Triton is loading its models"
    return "Triton does not answer" if "no answer" in message else "Triton takes no requests now"
