"""Readiness by a real inference: Triton's health URLs stay green when a model's process is dead."""

from __future__ import annotations

import io

import numpy as np
import tritonclient.grpc as grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

ENSEMBLES = ("image_score", "image_embedding")


def tiny_png() -> bytes:
    """An 8 × 8 grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def probe(client: grpc.InferenceServerClient, timeout_s: float = 10.0) -> str | None:
    """Score and embed a tiny picture with every head; None when it worked, else what went wrong."""
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[tiny_png()]], dtype=object))
    for model in ENSEMBLES:
        try:
            result = client.infer(model, [tensor], client_timeout=timeout_s)
        except InferenceServerException as error:
            return f"{model}: {error.message()}"
        assert result is not None
        for output in result.get_response().outputs:
            values = result.as_numpy(output.name)
            if values is None or not np.isfinite(values).all():
                return f"{model}: output {output.name} is {values}"
    return None
