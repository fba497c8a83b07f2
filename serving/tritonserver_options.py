"""Options of tritonserver that open something: model control behind a key, and tracing."""

from __future__ import annotations

import os
import re
import secrets
from typing import Literal

from common.admin_key import ADMIN_KEY
from serving.triton_wheel import ServingError

Control = Literal["none", "explicit"]

ADMIN_HEADER = "clipsieve-key"
"""Over HTTP; over gRPC the server expects `triton-grpc-protocol-` before it."""
ADMIN_APIS = "model-repository,shared-memory,trace,logging"
"""APIs that change a server, or read its memory. Loading a model can bring files along, which is running code."""


def control_options(control: Control, admin_key: str | None) -> list[str]:
    """Options that control how models are loaded.

    `none` loads all at the start and keeps them, and refuses everybody the `ADMIN_APIS`. `explicit` loads them too and
    then takes orders from those who send the key in `ADMIN_HEADER`.

    Raises:
        ServingError: `explicit` without a key, or with one that is too short or cannot stand in an option.
    """
    if control == "none":
        mode, admin_key = ["--model-control-mode=none"], secrets.token_hex(16)  # nobody has this key
    else:
        mode, admin_key = ["--model-control-mode=explicit", "--load-model=*"], check_admin_key(admin_key)
    return [
        *mode,
        f"--grpc-restricted-protocol={ADMIN_APIS}:{ADMIN_HEADER}={admin_key}",
        f"--http-restricted-api={ADMIN_APIS}:{ADMIN_HEADER}={admin_key}",
    ]


def check_admin_key(admin_key: str | None) -> str:
    """The key itself.

    Raises:
        ServingError: there is none, or it is too short or has other characters than letters, digits, `_` and `-`.
    """
    if not admin_key or not re.fullmatch(r"[A-Za-z0-9_-]{16,}", admin_key):
        actual = "none" if not admin_key else f"one of {len(admin_key)} characters"
        raise ServingError(
            "explicit model control lets its user run code in the server, so it needs a key of 16 or more letters, "
            f"digits, _ and -; found {actual}; set one with: export {ADMIN_KEY}=$(openssl rand -hex 16)"
        )
    return admin_key


def admin_key_from_environment() -> str | None:
    return os.environ.get(ADMIN_KEY)


def grpc_admin_headers(admin_key: str) -> dict[str, str]:
    """Metadata of a call of the `ADMIN_APIS`."""
    return {f"triton-grpc-protocol-{ADMIN_HEADER}": admin_key}


def tracing_options(url: str | None) -> list[str]:
    """OpenTelemetry: a trace of each request goes to a collector, such as `http://localhost:4318/v1/traces`.

    Raises:
        ServingError: not an http(s) URL.
    """
    if url is None:
        return []
    if not re.match(r"https?://[^/\s]+/\S", url):
        raise ServingError(f"tracing to {url!r}: needs an OTLP/HTTP address such as http://localhost:4318/v1/traces")
    settings = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", "count=-1", f"opentelemetry,url={url}"]
    return [f"--trace-config={setting}" for setting in settings]
