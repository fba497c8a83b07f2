"""A gateway as users run it: a process of its own, and requests to it byte by byte."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import PATIENCE_S, until

from common.paths import ROOT
from serving.embedded import free_ports

HOST = "127.0.0.1"
BOUNDARY = "boundary-of-a-test"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a refusal, which is problem+json."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        assert self.json["status"] == self.status
        return self.json["code"]


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that answers."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def send(
        self, path: str, body: bytes | None = None, content_type: str | None = None, method: str | None = None,
        **headers: str,
    ) -> Answer:  # fmt: skip
        """Send a request; POST with a body, GET without."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type:
            fields["Content-Type"] = content_type
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, fields)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def send_json(self, path: str, value: Any, **headers: str) -> Answer:
        return self.send(path, json.dumps(value).encode(), "application/json", **headers)

    def send_form(self, *parts: bytes, path: str = "/score", **headers: str) -> Answer:
        return self.send(path, form(parts), f"multipart/form-data; boundary={BOUNDARY}", **headers)

    def send_raw(self, data: bytes, half_close: bool = False) -> bytes:
        """Send bytes as they are, and read until the gateway ends the connection or falls silent."""
        with socket.create_connection((HOST, self.port), PATIENCE_S) as connection:
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was closed before everything was sent; what it said may be there
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except OSError:
        pass
    return received


def part(name: str, data: bytes, filename: str | None = None, disposition: bytes | None = None) -> bytes:
    """A part of a form, as bytes."""
    if disposition is None:
        file = "" if filename is None else f'; filename="{filename}"'
        disposition = f'form-data; name="{name}"{file}'.encode()
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + data


def form(parts: Iterable[bytes], boundary: str = BOUNDARY) -> bytes:
    mark = b"--" + boundary.encode()
    return b"".join(mark + b"\r\n" + each + b"\r\n" for each in parts) + mark + b"--\r\n"


@contextmanager
def running_gateway(triton: str, folder: Path, *options: str, **environment: str) -> Iterator[RunningGateway]:
    """A gateway in front of the server at this address.

    Args:
        folder: for its log.
    """
    (port,) = free_ports(0)
    log = folder / f"gateway-{port}.log"
    command = [sys.executable, "-m", "serving.gateway", "--url", triton, "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, stdout=output, env=os.environ | environment)
    running = RunningGateway(port, process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    try:
        until(answers, "an answer of the gateway")
        yield running
        assert process.poll() is None, f"the gateway ended: {log.read_text()}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
