"""Many calls in flight, results in the order of the inputs, memory bounded however many inputs there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_WINDOW = 4
"""Results kept behind a slow one, as a multiple of the calls in flight."""


async def pump(
    function: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], in_flight: int
) -> AsyncGenerator[_Result, None]:
    """Yield `await function(item)` for each item, in order, with at most `in_flight` calls running.

    Items are drawn only when a call may start. An exception is raised at its item's turn; calls that
    are still running then, or when the caller stops early, are cancelled.
    """
    slots = asyncio.Semaphore(in_flight)
    pending: deque[asyncio.Future[_Result]] = deque()
    try:
        for item in items:
            await slots.acquire()
            task = asyncio.ensure_future(function(item))
            task.add_done_callback(lambda _: slots.release())
            pending.append(task)
            while pending and (pending[0].done() or len(pending) >= in_flight * _WINDOW):
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
