"""Connections past the proxies of the environment: a server's neighbours reach it directly.

`http_proxy` in the environment is obeyed by urllib and by gRPC, also for addresses of this machine.
"""

from __future__ import annotations

import os
import urllib.request

import tritonclient.grpc as grpc

_GRPC_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
"""Options for tritonclient's `channel_args`, which replace its own: these have no limit on messages either."""

urlopen = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""`urllib.request.urlopen` without proxies."""


def grpc_client(url: str) -> grpc.InferenceServerClient:
    """A connection to `host:port` without proxies."""
    return grpc.InferenceServerClient(url, channel_args=_GRPC_OPTIONS)


def environment() -> dict[str, str]:
    """The environment for another program, without its proxies."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
