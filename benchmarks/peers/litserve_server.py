"""open_clip and torch behind LitServe, with its batching on, as its guide to fast serving has it.

    export MODEL=ViT-B-32-quickgelu WEIGHTS=weights.pt HEAD=head.npz
    python -m benchmarks.peers.litserve_server PORT WORKERS

POST /predict takes `{"image": "<base64>"}` and answers `{"score": 0.5}`.
"""

from __future__ import annotations

import base64
import os
import sys

import litserve  # pyright: ignore[reportMissingImports] (its own environment, .peers/litserve)

from benchmarks.peers.open_clip_classifier import Classifier

BATCH_SIZE = 8
BATCH_TIMEOUT_S = 0.005


class ScoreAPI(litserve.LitAPI):
    """One picture a request; LitServe reads the annotations of these methods, so they have none."""

    def setup(self, device):
        self.classifier = Classifier(os.environ["MODEL"], os.environ["WEIGHTS"], os.environ["HEAD"])

    def decode_request(self, request):
        return self.classifier.pixels(base64.b64decode(request["image"]))

    def predict(self, x):
        """(B, 3, H, W) float32 → B scores."""
        return self.classifier.scores(x)

    def encode_response(self, output):
        return {"score": output}


def main(port: str, workers: str) -> None:
    api = ScoreAPI(max_batch_size=BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers))
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
