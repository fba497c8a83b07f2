"""Reads the body of a request in pieces, within its limits; nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from starlette.requests import Request

from serving.gateway.limits import Share
from serving.gateway.problems import Problem


@dataclass(frozen=True)
class BodyLimits:
    """Bounds of one body."""

    max_bytes: int
    max_files: int
    timeout_s: float


async def read_body(request: Request, limits: BodyLimits, memory: Share) -> bytes:
    """The body.

    Raises:
        Problem: TOO_MANY_BYTES, TOO_SLOW, TOO_BUSY (no memory left), or BAD_HTTP when the sender goes away.
    """
    _check_encoding(request)
    _check_promised(request.headers.get("content-length", ""), limits.max_bytes)
    pieces: list[bytes] = []
    received = 0
    with anyio.move_on_after(limits.timeout_s):
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Problem("BAD_HTTP", "the body ended before it was whole")
            piece = message.get("body", b"")
            received += len(piece)
            if received > limits.max_bytes:
                raise Problem("TOO_MANY_BYTES", f"more than the {limits.max_bytes} bytes that a request may have")
            memory.take(len(piece))
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)
    raise Problem("TOO_SLOW", f"{received} bytes of the body came within {limits.timeout_s:g} s")


def _check_promised(length: str, max_bytes: int) -> None:
    """Refuse a body by what its header promises, before any of it is read."""
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise Problem("TOO_MANY_BYTES", f"{length[:20]} bytes; a request may have {max_bytes}")


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Problem("UNSUPPORTED_TYPE", f"Content-Encoding {encoding[:40]!r}; send the body as it is")
