"""The exported image encoder, run with onnxruntime: the very file that is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from common.manifest import EncoderManifest, onnx_files, read_encoder, sha256_of
from training.errors import StepError


class OnnxEncoder:
    """Pixels to embeddings through artifacts/encoders/<id>/model.onnx.

    Raises:
        ManifestError: there is no encoder.json.
        StepError: model.onnx is missing or is not the file that encoder.json describes.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: EncoderManifest = read_encoder(folder)
        path = folder / "model.onnx"
        _check_file(path, self.manifest)
        preferred = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}  # fp32 is fp32
        available = onnxruntime.get_available_providers()
        providers = [(name, options) for name, options in preferred.items() if name in available]
        self._session = onnxruntime.InferenceSession(path, providers=providers)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 → (B, embed_dim) float32."""
        outputs = self._session.run([self.manifest.output.name], {self.manifest.input.name: pixels})
        return np.asarray(outputs[0])


def _check_file(path: Path, manifest: EncoderManifest) -> None:
    remedy = "make it with: python -m build.encoder --recipe RECIPE"
    if not path.is_file():
        raise StepError(f"{path}: not found; {remedy}")
    sha256 = sha256_of(*onnx_files(path))
    if sha256 != manifest.onnx_sha256:
        raise StepError(
            f"{path}: sha256 is {sha256}, but encoder.json beside it says {manifest.onnx_sha256}; "
            f"the two files do not belong together, {remedy}"
        )
