"""clipsieve behind its own gateway, as one process that the benchmark measures whole.

    python -m benchmarks.peers.gateway_server MODELS PORT

POST /score takes one uploaded file, as the FastAPI script does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recipes.errors import run_step
from serving.embedded import EmbeddedServer, ServerSettings
from serving.gateway.server import serve
from serving.gateway.settings import Settings


def main() -> int:
    models, port = Path(sys.argv[1]), int(sys.argv[2])
    log = models.with_name(f"tritonserver-{port}.log")
    with EmbeddedServer(models, ServerSettings.on_free_ports(log)) as server:
        return serve(Settings(url=server.grpc_url, port=port))


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.peers.gateway_server", main))
