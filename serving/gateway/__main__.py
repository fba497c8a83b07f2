"""A REST server in front of Triton: pictures in by multipart, raw body or JSON, scores and decisions out.

    python -m serving.gateway --url localhost:8001
    curl -sS -F image=@photo.jpg http://127.0.0.1:8080/score

The page at / takes pictures by drag and drop, /docs describes every request. Each option may also be given in the
environment: --max-files as CLIPSIEVE_GATEWAY_MAX_FILES. With --tokens only who holds a token is answered; see
`python -m serving.gateway.token --help`. Other machines reach it with --host, which wants tokens (or --open).
"""

from __future__ import annotations

import sys

from recipes.errors import run_step
from serving.gateway.settings import GatewayError, Settings, parse_settings


def main(argv: list[str] | None = None) -> int:
    settings = parse_settings(argv, __doc__ or "")
    try:
        from serving.gateway.server import serve
    except ImportError as error:
        raise GatewayError(f"{error}; install the group `gateway`: requirements/gateway.txt") from error
    print(welcome(settings), file=sys.stderr, flush=True)
    return serve(settings)


def welcome(settings: Settings) -> str:
    address = f"http://{settings.host}:{settings.port}"
    token = " -H 'Authorization: Bearer TOKEN'" if settings.tokens else ""
    return "\n".join(
        [
            f"gateway to {settings.url} at {address}; Ctrl-C stops it",
            f"  page     {address}/",
            f"  help     {address}/docs",
            f"  curl -sS{token} -F image=@photo.jpg {address}/score",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_step("serving.gateway", main))
