"""Many calls in flight, results in the order of the inputs, memory bounded however many inputs there are."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeAlias, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_Calls: TypeAlias = "asyncio.Queue[asyncio.Future[Sequence[_Result]] | None]"

_LEAST_CALLS = 4
"""Least number of groups that fit into what may be in flight: a server works on several at once."""

_WINDOW = 4
"""Results kept behind a slow one, as a multiple of the items in flight."""


async def pump(
    function: Callable[[_Item], Awaitable[_Result]], items: Iterable[_Item], in_flight: int
) -> AsyncGenerator[_Result, None]:
    """Yield `await function(item)` for each item, in order. As `pump_groups`, with one item a call."""

    async def of_one(group: list[_Item]) -> list[_Result]:
        return [await function(group[0])]

    async with aclosing(pump_groups(of_one, items, in_flight, 1)) as results:
        async for result in results:
            yield result


async def pump_groups(
    function: Callable[[list[_Item]], Awaitable[Sequence[_Result]]], items: Iterable[_Item], in_flight: int, most: int
) -> AsyncGenerator[_Result, None]:
    """Yield the results of `await function(group)`, one for each item, in order, with at most `in_flight` running.

    A call gets at most `most` items: one while few are waiting, more the more there are; it never waits for items
    to come. Items that are no list are drawn in a thread of their own, so that a slow disk or pipe holds nothing
    up; at most `in_flight` are kept before their call starts. An exception, of a call or of `items`, is
    raised after the results before it; calls that are still running then, or when the caller stops early, are
    cancelled.
    """
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"expected many of them, such as a list, found one {type(items).__name__}")
    window = asyncio.Semaphore(in_flight * _WINDOW)
    calls: _Calls[_Result] = asyncio.Queue()
    running: set[asyncio.Future[Sequence[_Result]]] = set()
    source: _Listed[_Item] | _Drawer[_Item]
    source = _Listed(items) if isinstance(items, Sequence) else _Drawer(items, in_flight)
    starter = asyncio.ensure_future(
        _start_calls(function, source, in_flight, max(1, min(most, in_flight // _LEAST_CALLS)), window, calls, running)
    )
    try:
        while (call := await calls.get()) is not None:
            for result in await call:
                yield result
                window.release()
        await starter
    finally:
        left = [starter, *running]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _start_calls(
    function: Callable[[list[_Item]], Awaitable[Sequence[_Result]]],
    source: _Listed[_Item] | _Drawer[_Item],
    in_flight: int,
    most: int,
    window: asyncio.Semaphore,
    calls: _Calls[_Result],
    running: set[asyncio.Future[Sequence[_Result]]],
) -> None:
    """Put each group's call into `calls` when it may start, and None at the end."""
    slots = asyncio.Semaphore(in_flight)

    def start(group: list[_Item]) -> None:
        def finished(call: asyncio.Future[Sequence[_Result]]) -> None:
            running.discard(call)
            for _ in group:
                slots.release()
            if not call.cancelled():
                call.exception()  # looked at, also when nobody waits for this call any more

        call = asyncio.ensure_future(function(group))
        running.add(call)
        call.add_done_callback(finished)
        calls.put_nowait(call)

    try:
        await _acquire(1, window, slots)
        while waiting := await source.waiting():
            size = min(waiting, max(1, 2 * most * waiting // in_flight), most)
            await _acquire(size - 1, window, slots)
            start(source.take(size))
            await _acquire(1, window, slots)  # before looking how many are waiting then
    finally:
        source.stop()
        calls.put_nowait(None)


async def _acquire(count: int, *semaphores: asyncio.Semaphore) -> None:
    for _ in range(count):
        for semaphore in semaphores:
            await semaphore.acquire()


class _Listed(Generic[_Item]):
    """Items that are all there."""

    def __init__(self, items: Sequence[_Item]) -> None:
        self._items, self._next = items, 0

    async def waiting(self) -> int:
        return len(self._items) - self._next

    def take(self, count: int) -> list[_Item]:
        start, self._next = self._next, self._next + count
        return [self._items[place] for place in range(start, self._next)]

    def stop(self) -> None:
        pass


class _Drawer(Generic[_Item]):
    """Draws items in a thread, at most `ahead` before they are taken."""

    def __init__(self, items: Iterable[_Item], ahead: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(ahead)
        self._burst, self._taken = max(1, ahead // 4), 0
        self._items: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._ended = self._stopped = False
        self._failure: BaseException | None = None
        threading.Thread(target=self._draw, args=(items,), name="clipsieve-inputs", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._room.release()

    async def waiting(self) -> int:
        """Number of items to take, which is none at the end only. Raises what `items` raised."""
        while not self._items:
            self._arrived.clear()
            ended = self._ended  # looked at first: what is drawn before the end is there then
            if self._items:
                break
            if ended:
                if self._failure:
                    raise self._failure
                return 0
            await self._arrived.wait()
        return len(self._items)

    def take(self, count: int) -> list[_Item]:
        taken = [self._items.popleft() for _ in range(count)]
        self._taken += count
        if self._taken >= self._burst or not self._items:  # not one by one: each would wake the thread
            self._room.release(self._taken)
            self._taken = 0
        return taken

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
