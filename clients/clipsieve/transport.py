"""What the client needs of a connection, whichever protocol carries it.

`grpc_transport` and `http_transport` are the two implementations; each is imported only when used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from clipsieve._exceptions import InferenceFailed

ProtocolName = Literal["grpc", "http"]

DEFAULT_URLS: dict[str, str] = {"grpc": "localhost:8001", "http": "localhost:8000"}
_SCHEMES = {"grpc": {"grpc": False, "grpcs": True}, "http": {"http": False, "https": True}}


@dataclass(frozen=True)
class Retry:
    """When an inference meets a server that is unavailable, for both protocols.

    The deadline of the inference covers all attempts.
    """

    attempts: int = 5
    """gRPC allows no more than 5."""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    multiplier: float = 2.5


@dataclass(frozen=True)
class ModelConfig:
    """The part of a model's config.pbtxt that a client needs."""

    max_batch_size: int
    output_dims: Mapping[str, tuple[int, ...]]
    """Without the batch dimension, in the order of the config."""
    parameters: Mapping[str, str]


class Transport(Protocol):
    """One connection to one server. Methods raise only this package's exceptions."""

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether the server says that it is ready; this stays true when a Python stub has died."""
        ...

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig: ...

    async def infer_image(
        self, model: str, image: bytes, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, np.ndarray]:
        """Send one encoded image; each output comes back with a batch dimension of 1."""
        ...

    async def close(self) -> None: ...


def open_transport(protocol: str, url: str | None, retry: Retry | None = None) -> Transport:
    """Connect lazily: nothing is sent before the first call. Needs a running event loop."""
    address, tls = parse_url(protocol, url)
    if protocol == "grpc":
        from clipsieve.grpc_transport import GrpcTransport

        return GrpcTransport(address, tls, retry or Retry())
    from clipsieve.http_transport import HttpTransport

    return HttpTransport(address, tls, retry or Retry())


def parse_url(protocol: str, url: str | None) -> tuple[str, bool]:
    """`host:port` and whether to use TLS, from `host:port`, `grpc(s)://host:port` or `http(s)://host:port`.

    Raises:
        ValueError: unknown protocol, or a scheme that belongs to the other one.
    """
    if protocol not in _SCHEMES:
        raise ValueError(f"protocol must be grpc or http, found {protocol!r}")
    scheme, separator, address = (url or DEFAULT_URLS[protocol]).rpartition("://")
    if separator and scheme not in _SCHEMES[protocol]:
        known = " or ".join(f"{name}://" for name in _SCHEMES[protocol])
        raise ValueError(f"url {url!r} does not fit protocol {protocol!r}: leave out the scheme or use {known}")
    if not address.strip("/"):
        raise ValueError(f"url {url!r} names no server: give host:port")
    return address.rstrip("/"), bool(separator) and _SCHEMES[protocol][scheme]


def tensor_from_image(image: bytes) -> np.ndarray:
    """(1, 1) object array: a batch of one encoded file."""
    tensor = np.empty((1, 1), dtype=np.object_)
    tensor[0, 0] = image
    return tensor


def arrays_from_result(result: Any, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """The named outputs of a tritonclient result (gRPC's and HTTP's have the same method)."""
    arrays = {name: result.as_numpy(name) for name in outputs}
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        raise InferenceFailed("BAD_RESPONSE", f"the server's answer lacks {', '.join(missing)}")
    return arrays
