"""Requests that met a server that is gone, or still loading, wait here together until it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from clipsieve.exceptions import ClipsieveError, ServerUnavailable

_POLL_S = 0.5

_log = logging.getLogger("clipsieve")


class Outage:
    """One for a client.

    Args:
        wait_s: how long an outage may last; with 0 nobody waits.
        check_ready: asks the server; raises ServerUnavailable while it is not ready.
    """

    def __init__(self, wait_s: float, check_ready: Callable[[], Awaitable[None]]) -> None:
        self._wait_s = wait_s
        self._check_ready = check_ready
        self._since: float | None = None
        self._polling: asyncio.Task[ServerUnavailable | None] | None = None

    def over(self) -> None:
        """A request was answered."""
        if self._since is not None:
            _log.warning("the server is back after %.0f s", time.monotonic() - self._since)
            self._since = None

    async def wait(self, error: ServerUnavailable) -> None:
        """Return when it is worth trying again.

        Raises:
            ServerUnavailable: why the server did not answer last, when the outage has lasted too long.
        """
        if not self._wait_s:
            raise error
        if self._since is None:
            self._since = time.monotonic()
            _log.warning("%s; waiting for the server up to %g s", error, self._wait_s)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.ensure_future(self._poll(error, self._since + self._wait_s))
        if failure := await asyncio.shield(self._polling):
            raise failure

    async def _poll(self, failure: ServerUnavailable, deadline: float) -> ServerUnavailable | None:
        """Wait until the server takes requests; returns None then, or at the deadline why it does not."""
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            try:
                await self._check_ready()
            except ServerUnavailable as error:
                failure = error
            except ClipsieveError:
                return None  # another program answers, or the token is refused: the next request raises that error
            else:
                return None
        return failure

    def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
