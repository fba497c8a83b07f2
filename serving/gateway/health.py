"""Checks that Triton scores: its own word stays "ready" when the process that decodes pictures is dead.

The first check holds a server against its proof, as `clipsieve health` does; later ones score one small picture, and a
server that failed is proved anew. Whoever asks within a few seconds gets the last answer, so that asking costs nothing.
"""

from __future__ import annotations

import asyncio
import time

from clipsieve import AsyncClient, ClipsieveError, Health, InferenceFailed, ServerUnavailable
from clipsieve.proof import fetch_proof
from clipsieve.proof_format import ProofUnreadable
from clipsieve.transport import PROBE_ID, Request, Transport, image_tensor, open_transport
from serving.probe import tiny_png

_FRESH_S = 5.0
_TIMEOUT_S = 10.0


class HealthCheck:
    """Checks the server of a client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._transport: Transport | None = None
        self._picture: bytes | None = None
        """The picture that is scored, once the server is proved."""
        self._lock = asyncio.Lock()
        self._last: tuple[float, Health] | None = None

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()

    async def ping(self) -> bool:
        """True when the server says that it is ready; no picture is scored."""
        return (await self._client.health(deep=False)).ok

    async def check(self) -> Health:
        async with self._lock:
            if self._last is None or time.monotonic() > self._last[0] + _FRESH_S:
                self._last = (0.0, await self._check())
                self._last = (time.monotonic(), self._last[1])
            return self._last[1]

    async def _check(self) -> Health:
        if self._picture is None:
            health = await self._client.health(timeout_s=_TIMEOUT_S)
            if health.status == "ok":
                self._picture = await self._find_picture()
            return health
        health = await self._score(self._picture)
        if not health.ok:
            self._picture = None
        return health

    async def _score(self, picture: bytes) -> Health:
        try:
            names = [head.name for head in await self._client.chosen_heads()]
            started = time.perf_counter()
            request = Request("image_score", image_tensor(picture), names, id=PROBE_ID)
            await self._connected().infer(request, _TIMEOUT_S)
        except ServerUnavailable as error:
            return Health("unavailable", str(error))
        except ClipsieveError as error:
            if isinstance(error, InferenceFailed) and error.code == "SERVER_BUSY":
                return Health("busy", "the server works, and has no room for another picture now")
            return Health("failing", f"the server cannot score a picture: {error}")
        elapsed_ms = (time.perf_counter() - started) * 1000
        return Health("ok", f"scored a picture with {', '.join(names)} in {elapsed_ms:.0f} ms")

    async def _find_picture(self) -> bytes:
        """The smallest picture of the proof, which is in a format that is served."""
        try:
            proof = await fetch_proof(self._connected(), _TIMEOUT_S)
        except (ClipsieveError, ProofUnreadable):
            proof = None
        return tiny_png() if proof is None else proof.smallest_picture

    def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = open_transport(self._client.endpoints(), self._client.retry)
        return self._transport
