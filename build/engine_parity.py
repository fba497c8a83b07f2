"""The plan's parity check: real photographs through the plan and through the ONNX file it was built from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime

from build.cosine import cosines
from build.tensorrt_plan import PlanError, PlanSpec, run_plan
from recipes.manifest import EncoderManifest
from recipes.photos import sample_photos
from recipes.pixels import served_transform
from recipes.schema import Recipe


def plan_checker(
    recipe: Recipe, encoder: EncoderManifest, device: str = "cuda"
) -> Callable[[ModuleType, Path, PlanSpec], dict[str, float]]:
    """A check of one plan file; it needs the GPU that the plan is for."""

    def check(trt: ModuleType, plan: Path, spec: PlanSpec) -> dict[str, float]:
        transform = served_transform(encoder.preprocessing, recipe.serving)
        pixels = np.stack([transform(path.read_bytes()) for path in sample_photos()])  # (B, H, W, 3) uint8
        expected = _onnx_embeddings(spec, pixels)
        embeddings = run_plan(trt, plan.read_bytes(), spec, pixels, device)
        return compare_embeddings(expected, embeddings, recipe.build.minimum_cosine)

    return check


def compare_embeddings(expected: np.ndarray, embeddings: np.ndarray, minimum_cosine: float) -> dict[str, float]:
    """Two (B, D) float32 arrays, row by row in float64.

    Returns:
        photos, cosine_min, cosine_mean, max_abs_difference.

    Raises:
        PlanError: with the figure and the limit.
    """
    found = cosines(expected, embeddings)
    lowest = float(found.min())
    if not lowest >= minimum_cosine:  # NaN fails as well
        raise PlanError(
            f"cosine {lowest:.7f} between onnxruntime and the plan is below build.minimum_cosine {minimum_cosine}"
        )
    return {
        "photos": len(expected),
        "cosine_min": lowest,
        "cosine_mean": float(found.mean()),
        "max_abs_difference": float(np.abs(expected - embeddings).max()),
    }


def _onnx_embeddings(spec: PlanSpec, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(spec.onnx_path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([spec.output.name], {spec.input.name: pixels})[0])
