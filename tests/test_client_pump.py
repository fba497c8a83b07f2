"""Order, bounds and errors of many calls in flight."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest
from waiting import PATIENCE_S, until

from clipsieve.pump import pump


def _collect(function, items, in_flight):
    async def run():
        return [result async for result in pump(function, items, in_flight)]

    return asyncio.run(run())


def test_results_come_in_the_order_of_the_items():
    async def slower_first(number):
        await asyncio.sleep((20 - number) / 1000)
        return number

    assert _collect(slower_first, range(20), 20) == list(range(20))


def test_no_items_no_results():
    assert _collect(asyncio.sleep, [], 4) == []


class Items:
    """An iterable that remembers how many were drawn."""

    def __init__(self, count):
        self.left = iter(range(count))
        self.drawn = 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.left)
        self.drawn += 1
        return item


def test_calls_in_flight_and_results_kept_are_bounded():
    items = Items(1000)
    running = most = taken = ahead = 0

    async def call(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if number == 0 else 0)
        running -= 1

    async def run():
        nonlocal taken, ahead
        async for _ in pump(call, items, 4):
            taken += 1
            ahead = max(ahead, items.drawn - taken)

    asyncio.run(run())
    assert (taken, most) == (1000, 4)
    assert ahead <= 16 + 4 + 2  # results kept, items drawn ahead, one in each hand


def test_while_the_caller_is_busy_only_the_window_is_filled():
    items = Items(1000)

    async def call(_):
        await asyncio.sleep(0)

    async def run():
        async with aclosing(pump(call, items, 3)) as results:
            await anext(results)
            await asyncio.sleep(0.05)
            return items.drawn

    assert asyncio.run(run()) <= 1 + 12 + 3 + 2


def test_results_do_not_wait_for_the_next_item():
    """A list that comes slowly through a pipe."""
    release = threading.Event()

    def slowly():
        yield 1
        release.wait(PATIENCE_S)
        yield 2

    async def call(number):
        return number

    async def run():
        async with aclosing(pump(call, slowly(), 4)) as results:
            first = await asyncio.wait_for(anext(results), PATIENCE_S / 2)
            release.set()
            return [first, *[result async for result in results]]

    assert asyncio.run(run()) == [1, 2]


def test_error_of_the_items_comes_after_the_results_before_it():
    def breaking():
        yield from range(5)
        raise OSError("disk")

    async def call(number):
        await asyncio.sleep(0.005)
        return number

    results = []

    async def run():
        async for result in pump(call, breaking(), 2):
            results.append(result)

    with pytest.raises(OSError, match="disk"):
        asyncio.run(run())
    assert results == list(range(5))


def test_thread_that_draws_ends_with_the_pump():
    async def run():
        async with aclosing(pump(asyncio.sleep, iter([0] * 1000), 2)) as results:
            await anext(results)

    asyncio.run(run())
    until(lambda: not any(thread.name == "clipsieve-inputs" for thread in threading.enumerate()))


def test_error_is_raised_at_its_turn_and_the_rest_is_cancelled():
    cancelled = []

    async def call(number):
        if number == 2:
            raise ValueError(number)
        try:
            await asyncio.sleep(0.01 if number < 2 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    results = []

    async def run():
        async for result in pump(call, range(6), 6):
            results.append(result)

    with pytest.raises(ValueError, match="2"):
        asyncio.run(run())
    assert results == [0, 1]
    assert sorted(cancelled) == [3, 4, 5]


def test_stopping_early_cancels_what_is_in_flight():
    async def run():
        async with aclosing(pump(asyncio.sleep, [0, 60, 60], 3)) as results:
            await anext(results)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
