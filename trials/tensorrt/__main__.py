"""NVIDIA's parser and builder, in their edition for GeForce cards (TensorRT-RTX), on this project's ONNX files.

    make check-tensorrt
    python -m trials.tensorrt     # the same, once the wheels are installed; about 3 minutes

Needs no GPU and no driver. Plans are built by `build.tensorrt_plan` as they are for a server: of encoders with random
weights, and of a head. Each must build without a warning (a head with the one that `revision` is INT64), and in fp16
every attention must become one fused kernel. int8, and a UINT8 tensor in a node that only moves data, must be refused;
a stopped build must end early, and every build keep its timing cache. Nothing is loaded or run: nothing is known of
speed and numbers.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from build.builder_thread import run_in_thread
from build.export import EncoderGraph, export_onnx
from build.float16 import to_float16
from build.head import Affine, head_model
from build.quantize import to_int8
from build.tensorrt_plan import PlanError, PlanSpec, Progress, build_plan
from build.tower import load_tower
from common.manifest import BatchProfile, HeadManifest, Relu, Tensor
from recipes.errors import ExpectedError, run_step
from recipes.schema import Recipe, load_recipe, parse_recipe
from trials.tensorrt.library import load_tensorrt

FUSED_ATTENTION = b"function={ name=_gemm_mha"
"""Beginning of each fused attention kernel's description in a plan."""
PROFILE = BatchProfile(min_batch_size=1, opt_batch_size=8, max_batch_size=8)
ENCODERS: dict[str, tuple[dict[str, Any], int]] = {
    "B/32": ({"model": "ViT-B-32-quickgelu"}, 12),
    "SigLIP B/16": ({"model": "ViT-B-16-SigLIP"}, 12),
    "ResNet-18": ({"library": "timm", "model": "resnet18"}, 0),
}
"""Encoders besides the demo's, each with the number of its attentions that fp16 fuses."""


class Unexpected(ExpectedError):
    """The library did something else than this project says."""


@dataclass
class Builder:
    """Builds plans in a folder and notes a row of each."""

    trt: ModuleType
    folder: Path
    rows: list[dict[str, Any]]
    caches: itertools.count

    def build(self, name: str, spec: PlanSpec, fused: int = 0, warnings: int = 0) -> None:
        """Build a plan; another number of warnings or of fused attentions is an error."""
        lines: list[str] = []
        progress, started = Progress(report=lines.append), time.monotonic()
        cache = self.folder / f"{next(self.caches)}.cache"
        plan = bytes(run_in_thread(lambda: build_plan(self.trt, spec, cache, progress), progress))
        kernels = plan.count(FUSED_ATTENTION)
        expect(progress.complaints == warnings, f"{name}: {progress.complaints} warnings or errors: {lines}")
        expect(kernels == fused, f"{name}: {kernels} fused attentions, expected {fused}")
        expect(cache.stat().st_size > 0, f"{name}: no timing cache was kept")
        megabytes = round(len(plan) / 1e6, 1)
        seconds = round(time.monotonic() - started, 1)
        self.rows.append({"plan": name, "MB": megabytes, "seconds": seconds, "fused attentions": kernels})

    def refuse(self, name: str, spec: PlanSpec, message: str) -> None:
        """Check that a file is refused with a message."""
        try:
            build_plan(self.trt, spec, self.folder / "refused.cache", Progress(report=lambda line: None))
        except PlanError as error:
            expect(message in str(error), f"{name} was refused otherwise: {error}")
            print(f"refused: {name} ({message})")
        else:
            raise Unexpected(f"{name} was built, and must be refused")

    def stop(self, spec: PlanSpec) -> None:
        """Check that a build that is stopped when it begins ends early and keeps its timing cache."""
        cache, started = self.folder / "stopped.cache", time.monotonic()
        progress = Progress(report=lambda line: None, stopped=True)
        try:
            run_in_thread(lambda: build_plan(self.trt, spec, cache, progress), progress)
        except KeyboardInterrupt:
            expect(cache.is_file(), "a stopped build kept no timing cache")
            print(f"stopped: after {time.monotonic() - started:.1f} s, its timing cache kept")
        else:
            raise Unexpected("a build that was stopped went on to its end")


def expect(condition: bool, message: str) -> None:
    """Raise Unexpected unless the condition holds."""
    if not condition:
        raise Unexpected(message)


def exported(recipe: Recipe, path: Path) -> PlanSpec:
    """Export a recipe's encoder with random weights."""
    graph = EncoderGraph([load_tower(encoder) for encoder in recipe.encoder.towers])
    dims = list(graph.pixel_dims)
    export_onnx(graph, recipe.build.opset, path)
    return PlanSpec(path, Tensor(name="pixels", dtype="UINT8", dims=dims), embedding_of(path), PROFILE, 4 * 2**30)


def embedding_of(path: Path) -> Tensor:
    shape = onnx.load(path, load_external_data=False).graph.output[0].type.tensor_type.shape
    return Tensor(name="embedding", dtype="FP32", dims=[shape.dim[1].dim_value])


def float16(spec: PlanSpec) -> PlanSpec:
    """The fp16 form of an encoder, beside it."""
    path = spec.onnx_path.with_name(f"{spec.onnx_path.stem}-fp16.onnx")
    to_float16(spec.onnx_path, path)
    return replace(spec, onnx_path=path)


def int8(spec: PlanSpec) -> PlanSpec:
    """The int8 form of an encoder, beside it."""
    path = spec.onnx_path.with_name("int8.onnx")
    to_int8(spec.onnx_path, path, np.random.default_rng(0).integers(0, 256, (4, *spec.input.dims), np.uint8))
    return replace(spec, onnx_path=path)


def moved(folder: Path) -> PlanSpec:
    """A graph that moves UINT8 pixels before it casts them, which `build.tensorrt_plan` would refuse first."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["moved"], name="permute", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["moved"], ["embedding"], to=TensorProto.FLOAT),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3, 4, 4])
    model = helper.make_model(
        helper.make_graph(nodes, "moved", [pixels], [embedding]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "moved.onnx")
    unchecked = Tensor(name="pixels", dtype="FP32", dims=[4, 4, 3])  # its check is of UINT8 inputs
    return PlanSpec(folder / "moved.onnx", unchecked, unchecked, PROFILE, 4 * 2**30)


def head(folder: Path) -> PlanSpec:
    """A head of two layers with random weights."""
    encoder = {"id": "any", "weights_sha256": "", "preprocessing": "any", "normalize": True, "embed_dim": 512}
    manifest = HeadManifest.model_validate(
        {
            "name": "any", "recipe": {}, "encoder": encoder, "task": "binary", "labels": ["yes"],
            "class_names": ["no", "yes"], "layers": [], "activation": "sigmoid", "calibrated": False,
            "thresholds": [[{"value": 0.5, "operating_point": "fixed"}]], "weights_sha256": "0" * 64,
            "metrics": {}, "training": {}, "versions": {},
        }
    )  # fmt: skip
    weights = np.random.default_rng(0).standard_normal
    steps = [Affine(weights((512, 16)), np.zeros(16)), Relu(), Affine(weights((16, 1)), np.zeros(1))]
    onnx.save(head_model(manifest, steps, 18), folder / "head.onnx")
    embedding, score = Tensor(name="embedding", dtype="FP32", dims=[512]), Tensor(name="score", dtype="FP32", dims=[1])
    return PlanSpec(folder / "head.onnx", embedding, score, PROFILE, 4 * 2**30)


def check_all(builder: Builder) -> None:
    demo = exported(load_recipe("demo"), builder.folder / "demo.onnx")
    builder.build("demo fp32", demo)
    builder.build("demo fp16", float16(demo), fused=4)
    builder.stop(demo)
    builder.refuse("int8", int8(demo), "Non-zero zero point is not supported")
    builder.refuse("UINT8 into a Transpose", moved(builder.folder), "has type UInt8 but must have type")
    builder.build("head", head(builder.folder), warnings=1)  # that `revision` is INT64
    for name, (encoder, attentions) in ENCODERS.items():
        heads = [{"name": "any", "class_names": ["no", "yes"]}]
        recipe = parse_recipe({"name": "any", "description": name, "encoder": encoder, "heads": heads})
        spec = exported(recipe, builder.folder / f"{encoder['model']}.onnx")
        builder.build(f"{name} fp16", float16(spec), fused=attentions)


def main() -> None:
    trt = load_tensorrt()
    print(f"TensorRT-RTX under NVIDIA's bindings {trt.__version__}; random weights; nothing is loaded or run")
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(trt, Path(folder), [], itertools.count())
        check_all(builder)
    print_table(builder.rows)
    print_result("trials.tensorrt", machine(), bindings=trt.__version__, plans=builder.rows)


if __name__ == "__main__":
    sys.exit(run_step("trials.tensorrt", main, "stopped"))
