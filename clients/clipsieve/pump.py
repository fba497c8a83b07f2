"""Many calls in flight, results in the order of the inputs, memory bounded however many inputs there are."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_WINDOW = 4
"""Results kept behind a slow one, as a multiple of the calls in flight."""


async def pump(
    function: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], in_flight: int
) -> AsyncGenerator[_Result, None]:
    """Yield `await function(item)` for each item, in order, with at most `in_flight` calls running.

    Items that are no list are drawn in a thread of their own, so that a slow disk or pipe holds nothing up;
    at most `in_flight` are kept before their call starts. An exception, of a call or of `items`, is raised
    after the results before it; calls that are still running then, or when the caller stops early, are cancelled.
    """
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"expected many of them, such as a list, found one {type(items).__name__}")
    window = asyncio.Semaphore(in_flight * _WINDOW)
    calls: asyncio.Queue[asyncio.Future[_Result] | None] = asyncio.Queue()
    running: set[asyncio.Future[_Result]] = set()
    starter = asyncio.ensure_future(_start_calls(function, items, in_flight, window, calls, running))
    try:
        while (call := await calls.get()) is not None:
            yield await call
            window.release()
        await starter
    finally:
        left = [starter, *running]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _start_calls(
    function: Callable[[_Item], Awaitable[_Result]],
    items: Iterable[_Item],
    in_flight: int,
    window: asyncio.Semaphore,
    calls: asyncio.Queue[asyncio.Future[_Result] | None],
    running: set[asyncio.Future[_Result]],
) -> None:
    """Put each item's call into `calls` when it may start, and None at the end."""
    slots = asyncio.Semaphore(in_flight)

    def finished(call: asyncio.Future[_Result]) -> None:
        running.discard(call)
        slots.release()
        if not call.cancelled():
            call.exception()  # looked at, also when nobody waits for this call any more

    try:
        async with aclosing(_drawn(items, in_flight)) as source:
            async for item in source:
                await window.acquire()
                await slots.acquire()
                call = asyncio.ensure_future(function(item))
                running.add(call)
                call.add_done_callback(finished)
                calls.put_nowait(call)
    finally:
        calls.put_nowait(None)


async def _drawn(items: Iterable[_Item], ahead: int) -> AsyncGenerator[_Item, None]:
    if isinstance(items, Sequence):
        for item in items:
            yield item
        return
    drawer = _Drawer(items, ahead)
    try:
        async for item in drawer:
            yield item
    finally:
        drawer.stop()


class _Drawer(Generic[_Item], AsyncIterator[_Item]):
    """Draws items in a thread, at most `ahead` before they are taken."""

    def __init__(self, items: Iterable[_Item], ahead: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(ahead)
        self._burst, self._taken = max(1, ahead // 2), 0
        self._items: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._ended = self._stopped = False
        self._failure: BaseException | None = None
        threading.Thread(target=self._draw, args=(items,), name="clipsieve-inputs", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._room.release()

    async def __anext__(self) -> _Item:
        while not self._items:
            self._arrived.clear()
            ended = self._ended  # looked at first: what is drawn before the end is there then
            if self._items:
                break
            if ended:
                if self._failure:
                    raise self._failure
                raise StopAsyncIteration
            await self._arrived.wait()
        item = self._items.popleft()
        self._taken += 1
        if self._taken >= self._burst or not self._items:  # not one by one: each would wake the thread
            self._room.release(self._taken)
            self._taken = 0
        return item

    def _draw(self, items: Iterable[_Item]) -> None:
        try:
            for item in items:
                self._room.acquire()
                if self._stopped:
                    return
                self._items.append(item)
                if len(self._items) == 1:  # otherwise the reader is not waiting
                    self._wake()
        except BaseException as error:
            self._failure = error
        finally:
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:
            self._stopped = True  # the loop is closed: nobody reads any more
