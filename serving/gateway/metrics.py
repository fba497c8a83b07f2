"""Counts of the gateway, as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

_EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One for a gateway; used from its event loop alone."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """By route and status."""
        self.images: Counter[str] = Counter()
        """By outcome: `scored`, or the code of a refusal."""
        self.received_bytes = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        """Help and value of what is read when it is asked for."""
        self._seconds: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def finished(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[route, status] += 1
        counts = self._seconds.setdefault(route, [0] * (len(_EDGES_S) + 1))
        counts[bisect_left(_EDGES_S, seconds)] += 1
        self._sums[route] = self._sums.get(route, 0.0) + seconds

    def text(self) -> str:
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _header("requests_total", "counter", "Requests by route and HTTP status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'clipsieve_gateway_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _header("images_total", "counter", "Pictures by outcome: scored, or the code of a refusal.")
        for outcome, count in sorted(self.images.items()):
            yield f'clipsieve_gateway_images_total{{outcome="{outcome}"}} {count}'
        yield from _header("received_bytes_total", "counter", "Bytes of bodies that were read.")
        yield f"clipsieve_gateway_received_bytes_total {self.received_bytes}"
        yield from _header("request_seconds", "histogram", "Time from a request's headers to the end of its answer.")
        for route, counts in sorted(self._seconds.items()):
            yield from self._histogram(route, counts)
        for name, (help, value) in self.gauges.items():
            yield from _header(name, "gauge", help)
            yield f"clipsieve_gateway_{name} {value():g}"

    def _histogram(self, route: str, counts: list[int]) -> Iterator[str]:
        total = 0
        for edge, count in zip((*_EDGES_S, "+Inf"), counts, strict=True):
            total += count
            yield f'clipsieve_gateway_request_seconds_bucket{{route="{route}",le="{edge}"}} {total}'
        yield f'clipsieve_gateway_request_seconds_sum{{route="{route}"}} {self._sums[route]:.6f}'
        yield f'clipsieve_gateway_request_seconds_count{{route="{route}"}} {total}'


def _header(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP clipsieve_gateway_{name} {help}"
    yield f"# TYPE clipsieve_gateway_{name} {kind}"
