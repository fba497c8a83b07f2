"""Requests that met a server that is gone wait here together until it is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from clipsieve._exceptions import ClipsieveError, ServerUnavailable

_POLL_S = 0.5

_log = logging.getLogger("clipsieve")


class Outage:
    """One for a client.

    Args:
        wait_s: how long an outage may last; with 0 nobody waits.
        is_ready: asks the server; an error means no.
    """

    def __init__(self, wait_s: float, is_ready: Callable[[], Awaitable[bool]]) -> None:
        self._wait_s = wait_s
        self._is_ready = is_ready
        self._since: float | None = None
        self._polling: asyncio.Task[bool] | None = None

    def over(self) -> None:
        """A request was answered."""
        if self._since is not None:
            _log.warning("the server is back after %.0f s", time.monotonic() - self._since)
            self._since = None

    async def wait(self, error: ServerUnavailable) -> None:
        """Return when it is worth trying again.

        Raises:
            ServerUnavailable: `error`, when the outage has lasted too long.
        """
        if not self._wait_s:
            raise error
        if self._since is None:
            self._since = time.monotonic()
            _log.warning("%s; waiting for the server up to %g s", error, self._wait_s)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.ensure_future(self._poll(self._since + self._wait_s))
        if not await asyncio.shield(self._polling):
            raise error

    async def _poll(self, deadline: float) -> bool:
        """Whether the server answered before the deadline."""
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            try:
                if await self._is_ready():
                    return True
            except ClipsieveError:
                pass
        return False

    def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
