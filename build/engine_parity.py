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
from common.manifest import EncoderManifest, Parity
from common.photos import verification_pictures
from common.pixels import served_pixels
from recipes.schema import Recipe
from recipes.serving_section import Serving


def plan_checker(
    recipe: Recipe, encoder: EncoderManifest, device: str = "cuda"
) -> Callable[[ModuleType, Path, PlanSpec], Parity]:
    """A function that checks one plan on the GPU it is for, and saves the plan's embeddings beside it."""

    def check(trt: ModuleType, plan: Path, spec: PlanSpec) -> Parity:
        pixels = served_pixels(encoder.preprocessing, Serving(), verification_pictures())
        expected = _onnx_embeddings(spec, pixels)
        embeddings = run_plan(trt, plan.read_bytes(), spec, pixels, device)
        np.savez(plan.with_name(VERIFICATION), embeddings=embeddings)
        return check_plan(expected, embeddings, recipe)

    return check


def check_plan(expected: np.ndarray, embeddings: np.ndarray, recipe: Recipe) -> Parity:
    """Compare two (B, D) float32 arrays, onnxruntime's and the plan's.

    Raises:
        PlanError: with the figure and the limit.
    """
    parity = compare_embeddings(expected, embeddings)
    limit, lowest = recipe.build.limit, parity.cosine_min
    if not lowest >= limit:  # NaN fails as well
        raise PlanError(
            f"cosine {lowest:.7f} between onnxruntime and the plan is below "
            f"build.minimum_cosine.{recipe.build.precision} {limit}"
        )
    return parity


def _onnx_embeddings(spec: PlanSpec, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(spec.onnx_path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([spec.output.name], {spec.input.name: pixels})[0])
