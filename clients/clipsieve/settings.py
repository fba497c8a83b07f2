"""Settings of a connection: the arguments of both clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from clipsieve.transport import PRIORITIES, Endpoint, PriorityName, ProtocolName, Retry, parse_url


@dataclass(eq=False)
class Settings:
    """Raises ValueError for what cannot be."""

    url: str | None = None
    """`host:port`; by default localhost:8001 for gRPC, localhost:8000 for HTTP. A scheme, grpc://, grpcs://, http://
    or https://, decides the protocol and TLS. Proxies of the environment are not used."""
    protocol: ProtocolName | None = None
    """`grpc` or `http`; by default what the url says, or gRPC."""
    timeout_s: float = 30.0
    """Deadline of one inference, its retries included."""
    concurrency: int = 32
    """Images in flight in one call; the server makes batches of them."""
    _: KW_ONLY
    images_per_request: int = 4
    """Most small images that share a request when many are waiting, which costs the client and the server less. An
    image that cannot be scored still fails alone. Embeddings are sent in the largest batches the server takes."""
    priority: PriorityName | None = None
    """`bulk` images are taken up when no `interactive` ones wait, of any client, and may wait longer. By default the
    image of a call with one is interactive, and those of a call with more are bulk."""
    retry: Retry = field(default_factory=Retry)
    """Repetition of an inference when the server is unavailable or too busy."""
    wait_s: float = 0.0
    """Longest wait for a server that does not answer, at the start or later, or is still loading its models, before
    ServerUnavailable is raised, and for sending an image again to one that is too busy. `health` never waits."""
    tls: bool = False
    ca_file: str | Path | None = None
    """PEM certificates to trust instead of the system's; implies TLS."""
    token: str | None = field(default=None, repr=False)
    """Sent as `authorization: Bearer …`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.concurrency < 1 or not self.wait_s >= 0:
            values = f"{self.timeout_s}, {self.concurrency} and {self.wait_s}"
            raise ValueError(f"timeout_s must be > 0, concurrency >= 1 and wait_s >= 0, found {values}")
        if self.images_per_request < 1:
            raise ValueError(f"images_per_request must be >= 1, found {self.images_per_request}")
        if self.priority not in (None, *PRIORITIES):
            raise ValueError(f"priority must be {' or '.join(PRIORITIES)}, found {self.priority!r}")
        if self.ca_file is not None and not Path(self.ca_file).is_file():
            raise ValueError(f"there is no certificate file {self.ca_file}")
        self.endpoint()

    def endpoint(self) -> Endpoint:
        protocol, address, tls = parse_url(self.url, self.protocol)
        headers = dict(self.headers)
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        ca_file = Path(self.ca_file) if self.ca_file is not None else None
        return Endpoint(protocol, address, tls or self.tls or ca_file is not None, ca_file, headers)
