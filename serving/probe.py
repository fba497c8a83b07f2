"""Readiness by a real inference: Triton's health URLs stay green when a model's process is dead."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tritonclient.grpc as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from common.triton_messages import ENSEMBLES, HIGHEST_PRIORITY, PROBE_ID, PROCESS_DEAD, is_queue_refusal


@dataclass(frozen=True)
class Finding:
    """Why a probe got no answer.

    Attributes:
        kind: `busy`, the server works and refuses for want of room in a queue; `late`, no answer within the deadline;
            `refused`, it takes no such request; `failed`, anything else.
        message: the server's message.
    """

    kind: Literal["busy", "late", "refused", "failed"]
    message: str

    def __str__(self) -> str:
        return self.message

    @property
    def is_final(self) -> bool:
        """A dead Python process is never restarted by the server."""
        return PROCESS_DEAD in self.message


def tiny_png() -> bytes:
    """An 8 × 8 grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def probe(client: grpc.InferenceServerClient, picture: bytes, timeout_s: float = 10.0) -> Finding | None:
    """Score and embed a picture with every head within `timeout_s`; None when it worked, else what went wrong.

    Args:
        picture: an encoded file in a format that is served, such as the smallest of the server's proof.
    """
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture]], dtype=object))
    deadline = time.monotonic() + timeout_s
    for model in ENSEMBLES:
        left_s = max(0.01, deadline - time.monotonic())
        try:
            result = client.infer(
                model, [tensor], request_id=PROBE_ID, client_timeout=left_s, priority=HIGHEST_PRIORITY
            )
        except InferenceServerException as error:
            return finding_from(model, error)
        assert result is not None
        for output in result.get_response().outputs:
            values = result.as_numpy(output.name)
            if values is None or not np.isfinite(values).all():
                return Finding("failed", f"{model}: output {output.name} is {values}")
    return None


def finding_from(model: str, error: InferenceServerException) -> Finding:
    """Sort a failed call by its gRPC status and message."""
    message = f"{model}: {error.message()}"
    if error.status() == "StatusCode.DEADLINE_EXCEEDED":
        return Finding("late", message)
    if error.status() == "StatusCode.UNAVAILABLE" and is_queue_refusal(message):
        return Finding("busy", message)
    if error.status() == "StatusCode.INVALID_ARGUMENT":
        return Finding("refused", message)
    return Finding("failed", message)
