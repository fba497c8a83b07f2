"""Runs the application with uvicorn, and bounds what happens before a request has its headers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.gateway.app import create_app
from serving.gateway.problems import MEDIA_TYPE, problem_json, problem_text
from serving.gateway.settings import GatewayError, Settings

_MOST_HEADER_BYTES = 32 * 1024
_STOP_S = 30
_LINGER_S = 2.0


def serve(settings: Settings) -> int:
    """Serve until a signal; requests in flight are finished first."""
    server = uvicorn.Server(configuration(settings))
    ports = [settings.port, *([settings.metrics_port] if settings.metrics_port else [])]
    with contextlib.ExitStack() as stack:
        server.run([stack.enter_context(contextlib.closing(listening(settings.host, port))) for port in ports])
    return 0 if server.started else 1


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        GatewayError: it is taken, or is none of this machine.
    """
    # With the protocol named: asyncio then sends small writes at once (TCP_NODELAY), which is 40 ms of every answer.
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        return opened
    except OSError as error:
        opened.close()
        raise GatewayError(f"cannot listen at {host}:{port}: {error.strerror}; choose another with --port") from error


def configuration(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        settings.host,
        settings.port,
        http=protocol_class(settings),
        loop="auto",  # uvloop where it is there: a twelfth less processor time a request
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="error",
        timeout_keep_alive=int(settings.keep_alive),
        timeout_graceful_shutdown=_STOP_S,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
    )


def protocol_class(settings: Settings) -> type[H11Protocol]:
    """uvicorn's connection, with the settings' limits."""

    class Connection(LimitedConnection):
        header_timeout_s = settings.header_timeout
        most_connections = settings.connections

    return Connection


class LingeringTransport:
    """A transport whose `close` ends its own side, and then throws away for a moment what still comes.

    A connection that is closed while bytes arrive is reset, and the client may never see why it was refused.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._closing = False
        self._unsent: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send with all that is written before the event loop goes on."""
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(data)

    def _send(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if data:
            self._transport.write(data)

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        self._send()
        self._loop.call_later(_LINGER_S, self._transport.abort)
        try:
            self._transport.write_eof()
            self._transport.resume_reading()
        except (OSError, RuntimeError):  # the other side has gone
            self._transport.close()


class LimitedConnection(H11Protocol):
    """A connection that is closed when headers do not come in time, and refused when there are too many.

    uvicorn itself waits for the first byte of a request, and for its headers, as long as the client likes.
    """

    header_timeout_s: float
    most_connections: int
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self.most_connections:
            self._refuse("TOO_BUSY", f"all {self.most_connections} connections are in use; try again")
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_headers()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client has sent all it will; one that has sent a whole request gets its answer."""
        if self.transport.is_closing():
            return None
        if self.cycle is None or self.cycle.response_complete:
            if self.conn.trailing_data[0]:
                self._refuse("BAD_HTTP", "the request ended before it was whole")
                return True
            return None
        if self.cycle.more_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._refuse("BAD_HTTP", "the body ended before it was whole")
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse("BAD_HTTP", "these bytes are no HTTP/1.1 request")

    def _watch_headers(self) -> None:
        """Run the timer while no request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._refuse("TOO_SLOW", f"no whole request within {self.header_timeout_s:g} s")

    def _refuse(self, code: str, detail: str) -> None:
        """Answer and close; only close where an answer has begun, or none can be given any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = problem_json(code, detail)
            body, status = problem_text(problem), problem["status"]
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            start = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
