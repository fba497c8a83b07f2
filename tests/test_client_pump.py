"""Order, bounds and errors of many calls in flight."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

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
    assert ahead <= 16


def test_nothing_is_drawn_while_the_caller_is_busy():
    items = Items(100)

    async def call(_):
        await asyncio.sleep(0)

    async def run():
        async with aclosing(pump(call, items, 3)) as results:
            await anext(results)
            before = items.drawn
            await asyncio.sleep(0.02)
            return before, items.drawn

    before, after = asyncio.run(run())
    assert before == after <= 12


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
    assert cancelled == [3, 4, 5]


def test_stopping_early_cancels_what_is_in_flight():
    async def run():
        async with aclosing(pump(asyncio.sleep, [0, 60, 60], 3)) as results:
            await anext(results)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
