"""Compares a TensorRT plan with the ONNX file that it was built from, on the verification's pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime

from build.cosine import compare_embeddings
from build.encoder import VERIFICATION
from build.tensorrt_plan import PlanError, PlanSpec, run_plan
from common.manifest import EncoderManifest
from common.photos import verification_pictures
from common.pixels import served_pixels
from recipes.schema import Recipe, Serving


def plan_checker(
    recipe: Recipe, encoder: EncoderManifest, device: str = "cuda"
) -> Callable[[ModuleType, Path, PlanSpec], dict[str, float]]:
    """A function that checks one plan on the GPU it is for, and saves the plan's embeddings beside it."""

    def check(trt: ModuleType, plan: Path, spec: PlanSpec) -> dict[str, float]:
        pixels = served_pixels(encoder.preprocessing, Serving(), verification_pictures())
        expected = _onnx_embeddings(spec, pixels)
        embeddings = run_plan(trt, plan.read_bytes(), spec, pixels, device)
        np.savez(plan.with_name(VERIFICATION), embeddings=embeddings)
        return check_plan(expected, embeddings, recipe)

    return check


def check_plan(expected: np.ndarray, embeddings: np.ndarray, recipe: Recipe) -> dict[str, float]:
    """Compare two (B, D) float32 arrays, onnxruntime's and the plan's.

    Returns:
        pictures, cosine_min, cosine_mean, max_abs_difference.

    Raises:
        PlanError: with the figure and the limit.
    """
    figures = compare_embeddings(expected, embeddings)
    limit, lowest = recipe.build.limit, figures["cosine_min"]
    if not lowest >= limit:  # NaN fails as well
        raise PlanError(
            f"cosine {lowest:.7f} between onnxruntime and the plan is below "
            f"build.minimum_cosine.{recipe.build.precision} {limit}"
        )
    return figures


def _onnx_embeddings(spec: PlanSpec, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(spec.onnx_path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([spec.output.name], {spec.input.name: pixels})[0])
