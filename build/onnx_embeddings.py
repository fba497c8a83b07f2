"""Runs an encoder's ONNX file with onnxruntime on the CPU; imports no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from build.cosine import cosines
from build.errors import ParityError

BATCH = 8


def onnx_embeddings(onnx_path: Path, pixels: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    """Embed (N, H, W, 3) uint8 with onnxruntime on the CPU: (N, embed_dim) float32; graph optimisation is optional.

    Raises:
        ParityError: an image's embedding depends on the batch it is in.
    """
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])

    def embed(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["embedding"], {"pixels": batch})[0])

    together = np.concatenate([embed(batch) for batch in _batches(pixels)])
    alone = np.concatenate([embed(pixels[index : index + 1]) for index in range(3)])
    if not cosines(together[:3], alone).min() >= 0.99999:
        raise ParityError("the embedding of an image depends on the batch it is in")
    return together


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
