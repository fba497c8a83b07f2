"""Faults of clients: they vanish in the middle of a request, or take for ever to send one."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path

from clipsieve import Client
from trials.faults.processes import plain_server
from trials.faults.scene import Fault, Scene, condition
from trials.malformed import grpc_requests, http_requests
from trials.malformed.wire import open_grpc

TIMES = 200
FEW_FILES = 5  # connections of honest clients come and go
SLOW_CONNECTIONS = 500
SLOW_S = 8


def connect(url: str) -> socket.socket:
    host, port = url.split(":")
    return socket.create_connection((host, int(port)), 60)


def reset(connection: socket.socket) -> None:
    """Close so that the other side sees a connection reset, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def open_files(scene: Scene) -> int:
    return len(list(Path(f"/proc/{scene.server.pid}/fd").iterdir()))


def files_left(scene: Scene, before: int, within_s: float = 20.0) -> str:
    """Growth of the server's open files, once it is small or time is up."""
    started = time.monotonic()
    while (more := open_files(scene) - before) > FEW_FILES and time.monotonic() < started + within_s:
        time.sleep(0.1)
    return f"{more:+} open files after {time.monotonic() - started:.1f} s"


def vanish_over_http(scene: Scene) -> str:
    """Half a body and a whole one, each followed by an end and by a reset."""
    request = http_requests.with_tail(http_requests.ELEMENT)
    before = open_files(scene)
    for _ in range(TIMES):
        for data in (request[: len(request) // 2], request):
            for leave in (socket.socket.close, reset):
                connection = connect(scene.server.http_url)
                connection.sendall(data)
                leave(connection)
    return f"{4 * TIMES} vanished; {files_left(scene, before)}; {condition(scene)}"


def cancel_over_grpc(scene: Scene) -> str:
    """Requests cancelled at once, after a moment, and with the whole connection."""
    before = open_files(scene)
    request = grpc_requests.message().SerializeToString()
    for round_ in range(10):
        channel, infer = open_grpc(scene.server.grpc_url)
        calls = [infer.future(request, timeout=10) for _ in range(TIMES // 5)]
        time.sleep(0.01 * round_)
        for call in calls[::2]:
            call.cancel()
        channel.close()
    return f"{2 * TIMES} cancelled; {files_left(scene, before)}; {condition(scene)}"


def send_slowly(scene: Scene) -> str:
    """Slowloris: many connections that send a byte a second, with an honest HTTP client beside them."""
    request = http_requests.message(http_requests.encode(http_requests.document()))
    seconds = []
    with contextlib.ExitStack() as stack, Client(scene.server.http_url, "http", timeout_s=60) as client:
        slow = [stack.enter_context(connect(scene.server.http_url)) for _ in range(SLOW_CONNECTIONS)]
        end = time.monotonic() + SLOW_S
        for index in range(SLOW_S):
            for connection in slow:
                connection.sendall(request[index : index + 1])
            while True:
                started = time.monotonic()
                assert client.score([http_requests.PICTURE])[0].ok
                seconds.append(time.monotonic() - started)
                if time.monotonic() > end - SLOW_S + index + 1:
                    break
    beside = f"{len(seconds)} scores over HTTP beside {len(slow)} half-open connections"
    return f"{beside}, the slowest {max(seconds):.2f} s; {condition(scene)}"


FAULTS = [
    Fault("HTTP clients vanish", vanish_over_http, plain_server),
    Fault("gRPC calls cancelled", cancel_over_grpc, plain_server),
    Fault("slowloris", send_slowly, plain_server),
]
