"""Requests known to end tritonserver 2.51, each sent to a server of its own: why the embedded one stays on loopback.

Larger stacks for its threads (address space, not memory) are a cheap guard against those that overflow them, up to a
size of request that grows with the stack. Against a shape that asks for more memory than there is, nothing helps but a
newer server, or gRPC alone.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trials.malformed.http_requests import message
from trials.malformed.wire import Answer, Case, send_http
from trials.prefixed_server import PrefixedServer

GUARD_STACK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Known:
    name: str
    request: Callable[[], bytes]


@dataclass(frozen=True)
class Fate:
    """Effect of one request on a fresh server."""

    sent_bytes: int
    answer: Answer
    ended: int | None
    """The server's exit status; None when it lived."""
    grown_mib: float
    """Growth of the server's memory, at its largest."""

    def __str__(self) -> str:
        if self.ended is not None:
            return f"the server ended with status {self.ended}"
        return f"{self.answer.outcome}, memory +{self.grown_mib:.0f} MiB"


def huge_shape() -> bytes:
    """JSON numbers for a tensor of 2^60 × 1: room for all of them is made before they are counted."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [2**60, 1], "data": [1.0]}
    return message(json.dumps({"inputs": [tensor]}).encode())


def nested(depth: int) -> bytes:
    return message(b"[" * depth + b"]" * depth)


def chunked(count: int) -> bytes:
    """A body of chunks of one byte; room for a pointer to each is made on the stack."""
    headers: Any = {"Transfer-Encoding": "chunked", "Content-Length": None}
    return message(b"1\r\n[\r\n" * count + b"0\r\n\r\n", headers)


def compressed(size: int) -> bytes:
    """Blanks: a thousandth of their length on the wire, twice their length in the server."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    blocks = [packer.compress(b" " * 2**20) for _ in range(size // 2**20)]
    return message(b"".join([*blocks, packer.flush()]), {"Content-Encoding": "gzip"})


KNOWN = [
    Known("numbers for a shape of 2^60 x 1", huge_shape),
    Known("200,000 nested brackets", lambda: nested(200_000)),
    Known("5,000,000 nested brackets", lambda: nested(5_000_000)),
    Known("100,000 chunks of one byte", lambda: chunked(100_000)),
    Known("600,000 chunks of one byte", lambda: chunked(600_000)),
    Known("512 MiB of blanks, compressed", lambda: compressed(512 * 2**20)),
]


def fate(repository: Path, known: Known, log_path: Path, stack_bytes: int | None = None) -> Fate:
    """Start a server, send the request, and see whether the server is still there."""
    prefix = [] if stack_bytes is None else ["prlimit", f"--stack={stack_bytes}:"]
    request = known.request()
    with PrefixedServer(repository, log_path=log_path, prefix=prefix) as server:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        answer = send_http(server.http_url, Case(known.name, request), timeout_s=60)
        ended = server.wait(1.0)
        peak = before if ended is not None else peak_bytes(server.pid)
    return Fate(len(request), answer, ended, max(0, peak - before) / 2**20)


def peak_bytes(pid: int) -> int:
    """The most resident memory a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def fates(repository: Path, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Try every known request, against a server as it comes and one with larger stacks."""
    rows = []
    for known in KNOWN:
        started = time.monotonic()
        plain = fate(repository, known, folder / "log")
        guarded = fate(repository, known, folder / "log", GUARD_STACK_BYTES)
        rows.append({"request": known.name, "bytes": plain.sent_bytes, "plain": str(plain), "guarded": str(guarded)})
        say(f"{known.name}: {plain}; with larger stacks {guarded} ({time.monotonic() - started:.0f} s)")
    return rows
