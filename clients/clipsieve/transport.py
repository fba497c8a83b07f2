"""Interface of a connection, whichever protocol carries it.

`grpc_transport` and `http_transport` are the two implementations; each is imported only when used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from clipsieve.exceptions import InferenceFailed

ProtocolName = Literal["grpc", "http"]
PriorityName = Literal["interactive", "bulk"]

PRIORITIES: dict[PriorityName, int] = {"interactive": 1, "bulk": 2}
"""Priorities as Triton counts them: 1 is taken first. A server without priorities ignores them."""

PROBE_ID = "probe"

DEFAULT_ADDRESSES: dict[ProtocolName, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
_SCHEMES: dict[str, tuple[ProtocolName, bool]] = {
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
    "http": ("http", False),
    "https": ("http", True),
}
_PORT = re.compile(r":\d+$")
_DTYPES = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8"}


@dataclass(frozen=True)
class Retry:
    """Repetition of an inference that meets a server that is unavailable or too busy, for both protocols.

    The deadline of the inference covers all attempts.
    """

    attempts: int = 5
    """gRPC allows no more than 5."""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    multiplier: float = 2.5


@dataclass(frozen=True)
class Endpoint:
    """Address of a server and the credentials for it."""

    protocol: ProtocolName
    address: str
    """`host:port`; over HTTP also `host/prefix`."""
    tls: bool = False
    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; gRPC calls them metadata."""


@dataclass(frozen=True)
class ModelConfig:
    """The part of a model's config.pbtxt that a client needs."""

    max_batch_size: int
    output_dims: Mapping[str, tuple[int, ...]]
    """Dims of the outputs without the batch dimension, in the order of the config."""
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Tensor:
    """One input of a request, as it goes over the wire."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    pieces: Sequence[bytes | memoryview]
    """Its bytes, which are put together once, with those of the request around them: they may be many megabytes."""

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class Request:
    """One inference."""

    model: str
    tensor: Tensor
    outputs: Sequence[str]
    priority: PriorityName = "interactive"
    id: str = ""
    """The server's metrics do not count the images of a request with PROBE_ID."""


class Transport(Protocol):
    """One connection to one server. Methods raise only this package's exceptions."""

    async def is_ready(self, timeout_s: float) -> bool:
        """Ask the server whether it is ready; this stays true when a Python stub has died."""
        ...

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig: ...

    async def infer(self, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        """The named outputs, each (B, …) with the batch size of the input."""
        ...

    async def close(self) -> None: ...


def open_transport(endpoints: Sequence[Endpoint], retry: Retry) -> Transport:
    """Connect lazily to one server, or to several as one: nothing is sent before the first call.

    Needs a running event loop.
    """
    if len(endpoints) == 1:
        return _opened(endpoints[0], retry)
    from clipsieve.several import SeveralServers

    return SeveralServers([_opened(each, retry) for each in endpoints], [each.address for each in endpoints])


def _opened(endpoint: Endpoint, retry: Retry) -> Transport:
    if endpoint.protocol == "grpc":
        from clipsieve.grpc_transport import GrpcTransport

        return GrpcTransport(endpoint, retry)
    from clipsieve.http_transport import HttpTransport

    return HttpTransport(endpoint, retry)


def parse_url(url: str | None, protocol: ProtocolName | None = None) -> tuple[ProtocolName, str, bool]:
    """Protocol, `host:port` and whether to use TLS, from `host:port` or `grpc(s)://…` or `http(s)://…`.

    Without a scheme and a protocol it is gRPC.

    Raises:
        ValueError: unknown protocol or scheme, or a scheme that belongs to the other protocol.
    """
    if protocol not in (None, *DEFAULT_ADDRESSES):
        raise ValueError(f"protocol must be grpc or http, found {protocol!r}")
    scheme, separator, address = (url or DEFAULT_ADDRESSES[protocol or "grpc"]).strip().rpartition("://")
    scheme = scheme.lower()
    if separator and scheme not in _SCHEMES:
        raise ValueError(f"url {url!r}: unknown scheme; use {', '.join(f'{name}://' for name in _SCHEMES)}")
    scheme_protocol, tls = _SCHEMES[scheme] if separator else (protocol or "grpc", False)
    if protocol not in (None, scheme_protocol):
        raise ValueError(f"url {url!r} is for {scheme_protocol}, but protocol is {protocol}: leave one of them out")
    address = address.rstrip("/")
    if problem := _problem_of_address(address, scheme_protocol, bool(separator)):
        raise ValueError(f"url {_without_password(url or '')!r} {problem}")
    return scheme_protocol, address, tls


def _problem_of_address(address: str, protocol: ProtocolName, has_scheme: bool) -> str | None:
    host, slash, path = address.partition("/")
    if not host:
        return "names no server: give host:port"
    if "@" in host:
        return "has a user's name in it, which is not sent; give a token, or a header such as 'authorization: Basic …'"
    if host.count(":") > 1 and not host.startswith("["):
        return f"is an IPv6 address without brackets: write [{host}]:{DEFAULT_ADDRESSES[protocol].rpartition(':')[2]}"
    if protocol == "grpc" and slash:
        return f"has a path, and gRPC has none: write {host}, or http:// for a server's HTTP port"
    if path == "v2" or path.startswith("v2/") or "/v2/" in f"/{path}/":
        return "ends in /v2, which the client adds by itself: leave that away"
    if not _PORT.search(host) and (protocol == "grpc" or not has_scheme):
        port = DEFAULT_ADDRESSES[protocol].rpartition(":")[2]
        return f"names no port: write {host}:{port}, which is a server's own for {protocol}"
    return None


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def image_tensor(*images: bytes | memoryview) -> Tensor:
    """A batch of encoded files: a BYTES element is its length in 4 bytes, then the bytes."""
    pieces = [piece for image in images for piece in (len(image).to_bytes(4, "little"), image)]
    return Tensor("image", "BYTES", (len(images), 1), pieces)


def embedding_tensor(embeddings: np.ndarray) -> Tensor:
    """(B, D) float32"""
    return Tensor("embedding", "FP32", embeddings.shape, [np.ascontiguousarray(embeddings, "<f4").tobytes()])


def array_from_wire(datatype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """An array of numbers, or of `bytes` objects; raises InferenceFailed when the answer contradicts itself."""
    try:
        if datatype == "BYTES":
            return np.array(_elements(data), dtype=object).reshape(tuple(shape))
        return np.frombuffer(data, _DTYPES[datatype]).reshape(tuple(shape))
    except (KeyError, ValueError) as error:
        raise InferenceFailed("BAD_RESPONSE", f"an output {datatype} {list(shape)} of {len(data)} bytes") from error


def _elements(data: bytes) -> list[bytes]:
    """Elements of a BYTES tensor: each is its length in 4 bytes, then the bytes."""
    elements, start = [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise ValueError("an element that is longer than its tensor")
        elements.append(data[start + 4 : end])
        start = end
    return elements


def check_complete(arrays: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
    missing = [name for name in outputs if name not in arrays]
    if missing:
        raise InferenceFailed("BAD_RESPONSE", f"the server's answer lacks {', '.join(missing)}")
