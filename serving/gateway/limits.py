"""Limits that hold for all requests together: how many, how much memory, and how fast each token may come."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.gateway.problems import Problem

_MOST_NAMES = 10_000


class Room:
    """An amount of something that requests take and give back.

    Args:
        total: how much there is.
        what: the thing, for the message when it is used up.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.taken = total, what, 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share that grows as needed and is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.taken -= share.taken


class Share:
    """The part of a room that one request has taken."""

    def __init__(self, room: Room) -> None:
        self._room, self.taken = room, 0

    def take(self, amount: int) -> None:
        """Raises Problem: TOO_BUSY."""
        if self._room.taken + amount > self._room.total:
            raise Problem("TOO_BUSY", f"all {self._room.total} {self._room.what} are in use; try again")
        self._room.taken += amount
        self.taken += amount


class Rates:
    """A bucket of pictures for each name, which fills at a steady rate.

    Args:
        per_s: pictures a second; 0 is no limit.
        burst: how many a full bucket holds.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, name: str) -> None:
        """Refuse a name whose bucket is empty.

        Raises:
            Problem: RATE_LIMITED, with the seconds until there is a picture in it again.
        """
        if self._per_s and (level := self._level(name)) < 1:
            wait_s = (1 - level) / self._per_s
            detail = f"{self._per_s:g} pictures a second are allowed; come back in {wait_s:.1f} s"
            raise Problem("RATE_LIMITED", detail, {"Retry-After": str(int(wait_s) + 1)})

    def spend(self, name: str, pictures: int) -> None:
        """Take pictures out; a request with more than there are leaves a debt."""
        if self._per_s:
            self._levels[name] = (self._level(name) - pictures, self._clock())
            self._levels.move_to_end(name)
            while len(self._levels) > _MOST_NAMES:
                self._levels.popitem(last=False)

    def _level(self, name: str) -> float:
        level, since = self._levels.get(name, (float(self._burst), self._clock()))
        return min(float(self._burst), level + (self._clock() - since) * self._per_s)
