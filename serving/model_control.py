"""A server under explicit control, over gRPC: load a model, try one that is nowhere on its disk, ask a head."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

from common.proof import HeadAnswer, Proof
from common.triton_messages import HIGHEST_PRIORITY, PROBE_ID
from serving.config_text import parsed
from serving.no_proxy import grpc_client
from serving.proof import head_answer
from serving.triton_wheel import ServingError
from serving.tritonserver_options import grpc_admin_headers

HEAD_OUTPUTS = ("score", "decision", "revision")
PROBE: dict[str, Any] = {"request_id": PROBE_ID, "priority": HIGHEST_PRIORITY}


class ControlledServer:
    """One connection to a server, with the key of its admin APIs; use it as a context manager.

    Every method raises ServingError when the server refuses or does not answer.
    """

    def __init__(self, url: str, admin_key: str, timeout_s: float = 120) -> None:
        self.url = url
        self.timeout_s = timeout_s
        """Time limit of a load, which includes the model's warm-up."""
        self._headers = grpc_admin_headers(admin_key)
        self._client = grpc_client(url)

    def __enter__(self) -> ControlledServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def load(self, model: str) -> None:
        """Load the version that the model's config names now; returns when that version answers."""
        with self._refusals(f"load {model}"):
            self._client.load_model(model, headers=self._headers, client_timeout=self.timeout_s)

    def load_from_memory(self, name: str, config: str, files: list[Path]) -> None:
        """Load a model from files here, as its version 1, whatever lies on the server's disk."""
        message = parsed(config, Path(name))
        message.name = name
        message.ClearField("version_policy")
        text = json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True))
        contents = {f"file:1/{path.name}": path.read_bytes() for path in files}
        with self._refusals(f"load {name}"):
            self._client.load_model(
                name, headers=self._headers, config=text, files=contents, client_timeout=self.timeout_s
            )

    def unload(self, model: str) -> None:
        with self._refusals(f"unload {model}"):
            self._client.unload_model(model, headers=self._headers, client_timeout=self.timeout_s)

    def known_versions(self, model: str) -> list[int]:
        """All that this server ever loaded."""
        with self._refusals("list the repository"):
            index = self._client.get_model_repository_index(headers=self._headers, client_timeout=self.timeout_s)
        assert index is not None
        return [int(each.version) for each in index.models if each.name == model and each.version]

    def score(self, model: str, embeddings: np.ndarray) -> dict[str, np.ndarray]:
        """A head's outputs for (N, D) embeddings, in requests of one row: any max_batch_size takes them."""
        rows = [self._infer(model, "embedding", row[None], HEAD_OUTPUTS) for row in embeddings]
        return {name: np.concatenate([row[name] for row in rows]) for name in HEAD_OUTPUTS}

    def revision(self, model: str, embed_dim: int) -> int:
        """Revision of the head that answers."""
        embedding = np.zeros((1, embed_dim), np.float32)
        return int(self._infer(model, "embedding", embedding, ("revision",))["revision"][0, 0])

    def score_pictures(self, head: str, proof: Proof) -> HeadAnswer | None:
        """Scores that image_score gives the proof's pictures; None for a head that does not score pictures."""
        names = (head, f"{head}_revision")
        with self._refusals("describe image_score"):
            description = self._client.get_model_metadata("image_score", client_timeout=self.timeout_s)
        assert description is not None
        if names[1] not in [tensor.name for tensor in description.outputs]:
            return None
        parts = [
            self._infer("image_score", "image", np.array([[picture.file] for picture in batch], dtype=object), names)
            for batch in proof.batches()
        ]
        scores, revisions = (np.concatenate([part[name] for part in parts]) for name in names)
        return head_answer(scores, revisions)

    def _infer(self, model: str, name: str, values: np.ndarray, outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        tensor = grpc.InferInput(name, list(values.shape), "BYTES" if values.dtype == object else "FP32")
        tensor.set_data_from_numpy(values)
        requested = [grpc.InferRequestedOutput(output) for output in outputs]
        with self._refusals(f"ask {model}"):
            result = self._client.infer(model, [tensor], outputs=requested, client_timeout=self.timeout_s, **PROBE)
        assert result is not None
        return {output: np.asarray(result.as_numpy(output)) for output in outputs}

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            raise ServingError(f"{self.url}: cannot {what}: {_explained(error)}") from error


def _explained(error: InferenceServerException) -> str:
    """The server's error in one line, with a remedy where there is one."""
    message = " ".join(str(error.message()).split())
    if "protocol is restricted" in message:
        return f"{message}; the server has another CLIPSIEVE_ADMIN_KEY, or runs without --control explicit"
    if "not allowed" in message:
        return f"{message}; start the server with explicit model control (serving.embedded --control explicit)"
    return f"{message:.500}"
