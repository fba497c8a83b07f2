"""Settings of a connection: the arguments of both clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from clipsieve.transport import PRIORITIES, Endpoint, PriorityName, ProtocolName, Retry, parse_url

_HEADER_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(eq=False)
class Settings:
    """Raises ValueError for what cannot be."""

    url: str | None = None
    """`host:port`; by default localhost:8001 for gRPC, localhost:8000 for HTTP. A scheme, grpc://, grpcs://, http://
    or https://, decides the protocol and TLS. Of several with commas between them each image goes to the one with the
    fewest under way, and past one that does not answer. Proxies of the environment are not used."""
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
        self.endpoints()

    @property
    def urls(self) -> list[str | None]:
        """Each server's own `url`; None for the default."""
        return [None] if self.url is None else [url.strip() for url in self.url.split(",")]

    @property
    def addresses(self) -> str:
        """The servers' addresses, for messages."""
        return ", ".join(endpoint.address for endpoint in self.endpoints())

    def endpoints(self) -> list[Endpoint]:
        """Each server that `url` names, with what is sent to it."""
        headers = dict(self.headers)
        for name, value in headers.items():
            _check_header(name, value)
        if self.token:
            _check_text("the token", token := self.token.strip())
            headers["authorization"] = f"Bearer {token}"
        ca_file = Path(self.ca_file) if self.ca_file is not None else None
        urls = self.urls
        if len(urls) > 1 and not all(urls):
            raise ValueError(f"url {self.url!r} names no server between two commas, or at an end")
        parsed = [parse_url(url, self.protocol) for url in urls]
        return [
            Endpoint(protocol, address, tls or self.tls or ca_file is not None, ca_file, headers)
            for protocol, address, tls in parsed
        ]


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"header {name!r}: a name has letters, digits and - . _ alone")
    _check_text(f"header {name}", value)


def _check_text(what: str, text: str) -> None:
    """Refuse what neither protocol can send; the text, which may be a secret, is not shown.

    Raises:
        ValueError: it says where.
    """
    for place, letter in enumerate(text, 1):
        if not " " <= letter <= "~":
            found = "a line break" if letter in "\r\n" else f"the character U+{ord(letter):04X}"
            raise ValueError(f"{what} has {found} at place {place}; it must be one line of printable ASCII")
