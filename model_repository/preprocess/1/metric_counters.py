"""Counts of one Triton Python process, kept in it and handed to the server's /metrics about once a second.

A call into Triton's registry crosses to the server's process and costs about a tenth of a millisecond, so no
request makes one: a thread does, for what has changed. Processes that count under equal names and labels add up.
Nothing here raises into a request: what cannot be counted is not counted.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

INTERVAL_S = 1.0
PROBE_ID = "probe"
"""A request of this id asks whether the server works, and is not counted."""
Labels = tuple[tuple[str, str], ...]
Edges = tuple[float, ...]
"""Upper edges of a histogram's bins, ascending; a last bin, to +Inf, takes what is above."""


class Registry(Protocol):
    """Receiver of the counts: Triton's metrics, or a fake in tests."""

    def increment(self, name: str, labels: Labels, amount: float) -> None: ...

    def set(self, name: str, labels: Labels, value: float) -> None: ...


class TritonRegistry:
    """Triton's own registry, through `triton_python_backend_utils`.

    Args:
        pb_utils: that module.
        descriptions: of each metric that may be named, its HELP text.
    """

    def __init__(self, pb_utils, descriptions: Mapping[str, str]) -> None:
        self._pb_utils = pb_utils
        self._descriptions = descriptions
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}

    def increment(self, name: str, labels: Labels, amount: float) -> None:
        self._metric(name, labels, "COUNTER").increment(amount)

    def set(self, name: str, labels: Labels, value: float) -> None:
        self._metric(name, labels, "GAUGE").set(value)

    def _metric(self, name: str, labels: Labels, kind: str) -> Any:
        if (name, labels) not in self._metrics:
            if name not in self._families:
                self._families[name] = self._pb_utils.MetricFamily(
                    name=name, description=self._descriptions[name], kind=getattr(self._pb_utils.MetricFamily, kind)
                )
            self._metrics[name, labels] = self._families[name].Metric(labels=dict(labels))
        return self._metrics[name, labels]


class Counters:
    """Counts since the last flush; safe to use from several threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._pending: Counter[tuple[str, Labels]] = Counter()
        self._histograms: dict[tuple[str, Labels, Edges], list[int]] = {}  # values in each bin
        self._known: set[tuple[str, Labels]] = set()

    def add(self, name: str, labels: Labels = (), amount: int = 1) -> None:
        """Count; an amount of 0 makes the series known."""
        with self._lock:
            self._pending[name, labels] += amount

    def observe(self, name: str, edges: Edges, value: float) -> None:
        """Count `value` in the first bin whose edge is not below it."""
        self.add_buckets(name, (), edges, (bisect.bisect_left(edges, value),))

    def add_buckets(self, name: str, labels: Labels, edges: Edges, buckets: Iterable[int]) -> None:
        """Count indices into `edges`, of which `len(edges)` is the open bin; none at all makes the series known."""
        with self._lock:
            bins = self._histograms.setdefault((name, labels, edges), [0] * (len(edges) + 1))
            for bucket in buckets:
                bins[bucket] += 1

    def flush(self) -> None:
        """Hand what is pending to the registry; what it refuses is lost, and the rest still goes there."""
        with self._lock:
            pending, self._pending = self._pending, Counter()
            histograms, self._histograms = self._histograms, {}
        for (name, labels, edges), bins in histograms.items():
            for edge, amount in zip((*edges, math.inf), itertools.accumulate(bins), strict=True):
                pending[name, (*labels, ("le", le(edge)))] += amount  # cumulative, as Prometheus wants them
        for (name, labels), amount in pending.items():
            with contextlib.suppress(Exception):
                self._increment(name, labels, amount)

    def _increment(self, name: str, labels: Labels, amount: int) -> None:
        """Send the series that changed or are new, and no others."""
        if amount or (name, labels) not in self._known:
            self._registry.increment(name, labels, amount)
            self._known.add((name, labels))


class Flusher:
    """Calls `flush` about once a second from a thread of its own, until `stop`."""

    def __init__(self, flush: Callable[[], None], interval_s: float = INTERVAL_S) -> None:
        self._flush = flush
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            with contextlib.suppress(Exception):  # the next second is counted all the same
                self._flush()


def le(edge: float) -> str:
    """An edge as a label: `0.05`, `1000000`, `+Inf`, `-Inf`."""
    if math.isinf(edge):
        return "+Inf" if edge > 0 else "-Inf"
    return str(int(edge)) if edge == int(edge) else f"{edge:.6g}"
