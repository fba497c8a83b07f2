"""Settings of the gateway: options of the command line, each of which the environment may give instead."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recipes.errors import ExpectedError

PREFIX = "CLIPSIEVE_GATEWAY_"
"""Beginning of the variables: CLIPSIEVE_GATEWAY_MAX_FILES is --max-files."""

_MAY_BE_ZERO = ("open", "port", "metrics_port", "rate")
_TRUE = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class GatewayError(ExpectedError):
    """The gateway cannot start."""


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Settings:
    """Raises GatewayError for what cannot be."""

    url: str = _option("localhost:8001", "Triton: host:port for gRPC, or grpcs://, http://, https://", "URL")
    host: str = _option("127.0.0.1", "address to listen at; 0.0.0.0 is every one of this machine", "ADDRESS")
    port: int = _option(8080, "port to listen at", "PORT")
    metrics_port: int = _option(0, "port of its own for /metrics, without tokens; 0 is none", "PORT")
    tokens: Path | None = field(
        default=None,
        metadata={"help": "file of the tokens that are let in (serving.gateway.token)", "metavar": "FILE"},
    )
    open: bool = _option(False, "let everybody in who reaches --host, without tokens")
    timeout: float = _option(30.0, "time limit of one inference", "SECONDS")
    max_mib: float = _option(64.0, "largest body of a request", "MIB")
    max_files: int = _option(64, "most pictures in one request", "COUNT")
    memory_mib: float = _option(1024.0, "most memory for the bodies of all requests together", "MIB")
    rate: float = _option(0.0, "pictures a second for each token; 0 is no limit", "COUNT")
    burst: int = _option(64, "pictures that a token may send at once before --rate counts", "COUNT")
    concurrency: int = _option(64, "most requests that are scored or read at the same time", "COUNT")
    connections: int = _option(512, "most open connections", "COUNT")
    header_timeout: float = _option(10.0, "time limit for the headers of a request", "SECONDS")
    body_timeout: float = _option(30.0, "time limit for the body of a request", "SECONDS")
    keep_alive: float = _option(15.0, "how long a connection may be idle", "SECONDS")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, (int, float)) and each.name not in _MAY_BE_ZERO and not value > 0:
                raise GatewayError(f"--{each.name.replace('_', '-')} must be more than 0, found {value}")
        if not (0 <= self.port < 65536 and 0 <= self.metrics_port < 65536 and self.rate >= 0):
            values = f"{self.port}, {self.metrics_port} and {self.rate}"
            raise GatewayError(f"--port and --metrics-port are 0 to 65535 and --rate 0 or more, found {values}")
        if not (self.tokens or self.open or is_loopback(self.host)):
            raise GatewayError(
                f"--host {self.host} can be reached by other machines: name the tokens that are let in "
                "(--tokens FILE, made by python -m serving.gateway.token), or let everybody in (--open)"
            )

    @property
    def max_bytes(self) -> int:
        return int(self.max_mib * 2**20)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_settings(
    argv: Sequence[str] | None, description: str, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Read the command line, and the environment for what it does not name.

    Raises:
        GatewayError: a variable holds no such value, or the settings do not fit together.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.gateway", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for each in fields(Settings):
        _add_option(parser, each.name, each.default, each.metadata, environment)
    return Settings(**vars(parser.parse_args(argv)))


def _add_option(
    parser: argparse.ArgumentParser,
    name: str,
    default: Any,
    metadata: Mapping[str, Any],
    environment: Mapping[str, str],
) -> None:
    variable = PREFIX + name.upper()
    kind = Path if default is None else type(default)
    given = environment.get(variable)
    try:
        if given:
            default = _TRUE[given.lower()] if kind is bool else kind(given)
    except (KeyError, ValueError):
        raise GatewayError(f"{variable} is {given!r}, which is no {kind.__name__}") from None
    option, help = f"--{name.replace('_', '-')}", metadata["help"]
    if kind is bool:
        parser.add_argument(option, action="store_true", default=default, help=help)
    else:
        shown = "" if default is None else f" (default {default})"
        parser.add_argument(option, type=kind, default=default, metavar=metadata["metavar"], help=f"{help}{shown}")
