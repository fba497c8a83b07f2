"""A server that is held to nothing, for tests that serve what no build verified."""

from __future__ import annotations

import time

import tritonclient.grpc

from serving.embedded import EmbeddedServer
from serving.probe import probe, tiny_png


class UnprovedServer(EmbeddedServer):
    """Wait until the server scores, whatever its scores."""

    def _wait_until_ready(self) -> None:
        with tritonclient.grpc.InferenceServerClient(self.grpc_url) as client:
            while (problem := probe(client, tiny_png())) is not None:
                assert self.poll() is None, problem
                time.sleep(0.1)
