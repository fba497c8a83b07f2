"""The gateway under malformed requests: its answers read, and an honest client beside them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

from serving.gateway.problems import KINDS, MEDIA_TYPE
from trials.malformed.gateway_requests import PICTURE
from trials.malformed.wire import Answer, Case, exchange

LIMITS = ("--max-mib", "4", "--max-files", "16", "--header-timeout", "5", "--body-timeout", "5")
"""Of the gateway under trial: small, so that requests reach them."""


def send_gateway(address: str, case: Case, timeout_s: float = 10.0) -> Answer:
    """Send to `host:port`, and read the answer as the documentation has it."""
    received = exchange(address, case, timeout_s)
    return received if isinstance(received, Answer) else gateway_answer(received)


def gateway_answer(received: bytes) -> Answer:
    """Scores, or a refusal with a documented code and its status; whatever else came is `undocumented`.

    Where damage ends a request early, the rest is one more, which may be refused and never scored.
    """
    answers = [_answer(head, body) for head, body in _split(received)]
    first, *more = answers or [Answer("undocumented", f"no HTTP: {received[:200]!r}")]
    for other in more:
        if other.outcome != "refused":
            return Answer("undocumented", f"after {first.detail} came {other.detail}")
    return first


def _split(received: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Head and body of each answer on a connection."""
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lengths = [
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        ]
        length = min(lengths[0], len(rest)) if lengths and rest[:5] != b"HTTP/" else 0  # to HEAD there is no body
        if not head.startswith(b"HTTP/1.1 100 "):
            yield head, rest[:length]
        received = rest[length:]


def _answer(head: bytes, body: bytes) -> Answer:
    status = head.split(b"\r\n", 1)[0].decode(errors="replace")
    shown = f"{status}: {body[:200].decode(errors='replace')}"
    if status.startswith("HTTP/1.1 200 "):
        return _scored(head, body, shown)
    if not body and MEDIA_TYPE.encode() in head:
        return Answer("refused", status)  # to HEAD
    return Answer("refused" if is_documented(head, body, status) else "undocumented", shown)


def is_documented(head: bytes, body: bytes, status: str) -> bool:
    if MEDIA_TYPE.encode() not in head:
        return False
    problem = _last_json(body)
    kind = KINDS.get(problem.get("code", "")) if isinstance(problem, dict) else None
    return kind is not None and status.startswith(f"HTTP/1.1 {kind.status} ") and problem["status"] == kind.status


def _scored(head: bytes, body: bytes, shown: str) -> Answer:
    if b"application/json" not in head:
        return Answer("refused", shown)  # a page, or the counts
    document = _last_json(body)
    if document is None:
        return Answer("undocumented", shown)
    errors = [error["code"] for error in _values(document, "error")]
    if unknown := set(errors) - set(KINDS):
        return Answer("undocumented", f"codes {unknown}; {shown}")
    scores = tuple(float(score) for score in _values(document, "score"))
    return Answer("scored" if scores else "refused", shown, scores)


def _last_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _values(document: Any, name: str) -> Iterator[Any]:
    """Every value of this name, however deep."""
    if isinstance(document, list):
        for each in document:
            yield from _values(each, name)
    elif isinstance(document, dict):
        for key, value in document.items():
            if key == name:
                yield value
            else:
                yield from _values(value, name)


def score_through(address: str) -> tuple[float, ...]:
    """Scores of the honest picture through the gateway. Raises ValueError when it is refused."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", "/score", PICTURE, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"{answer.status}: {body[:200]!r}")
    return tuple(_values(json.loads(body), "score"))


def leftovers(address: str) -> list[str]:
    """What the gateway still holds when nothing is under way, by its own counts."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    held = ("clipsieve_gateway_requests_in_flight", "clipsieve_gateway_body_bytes")
    return [line for line in text.splitlines() if line.startswith(held) and not line.endswith(" 0")]
