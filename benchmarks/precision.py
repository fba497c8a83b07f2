"""What an encoder's ONNX file gains and loses in fp16 and int8: images/s, size, embeddings, and a head's scores.

    python -m benchmarks.precision --model ViT-B-32-quickgelu
    python -m benchmarks.precision --model ViT-L-14-quickgelu --heads ../shared/heads --rounds 3
    python -m benchmarks.precision --model ViT-B-32-quickgelu --outliers 40 --tried

Prints a table, and as its last line JSON with the machine and versions. Images/s are medians of interleaved rounds on
onnxruntime's CPU, relative to fp32 of the same run. Photographs and drawn pictures are compared with fp32; int8 is
calibrated on other pictures. `fp16` is compared as a GPU computes it, every fp16 tensor rounded to fp16: this CPU
would compute in fp32 between the Casts. `--pretrained random`, the default, says nothing of trained weights;
`--outliers` scales a few channels as trained vision transformers have them. `--tried` adds what was not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks.machine import machine, print_result
from build.cosine import cosines
from build.export import EncoderGraph, export_onnx
from build.head import build_head
from build.precision import to_float16, write_as_gpu
from build.quantize import to_int8
from build.tower import Tower, load_tower
from recipes.photos import Picture, calibration_pictures, verification_pictures
from recipes.pixels import served_pixels
from recipes.schema import Head, Published, Recipe, Serving, load_recipe
from training.import_head import Options, import_head

_HEADS = {512: "laion-nsfw-b32", 768: "laion-nsfw-l14"}
_HEAD_FILES = {512: "clip_autokeras_nsfw_b32.zip", 768: "clip_autokeras_binary_nsfw.zip"}

Embed = Callable[[np.ndarray], np.ndarray]


class _Pictures(CalibrationDataReader):
    """(N, H, W, 3) uint8 for onnxruntime's own calibration, four at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter([{"pixels": pixels[start : start + 4]} for start in range(0, len(pixels), 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.batches, None)


def export(model: str, pretrained: str, outliers: float, path: Path) -> Tower:
    """Write the fp32 encoder; with `outliers`, some channels of a ViT of open_clip are that much larger."""
    recipe = recipe_of(model, pretrained)
    tower = load_tower(recipe.encoder)
    if outliers > 1:
        add_outliers(tower.visual, outliers)
    with contextlib.redirect_stdout(sys.stderr):
        export_onnx(EncoderGraph([tower]), recipe.build.opset, path)
    return tower


def recipe_of(model: str, pretrained: str) -> Recipe:
    recipe = load_recipe("nsfw-vit-b-32")
    weights = {"model": model, "pretrained": None if pretrained == "random" else pretrained}
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=weights)})


@torch.no_grad()
def add_outliers(visual: Any, factor: float) -> None:
    """Make a few inputs of each product `factor` times larger and their weights smaller: the function stays."""
    generator = torch.Generator().manual_seed(1)

    def some(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)[: max(1, count // 200)]

    for block in visual.transformer.resblocks:
        for norm, weight in ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight)):
            channels = some(norm.weight.numel())
            norm.weight[channels] *= factor
            norm.bias[channels] *= factor
            weight[:, channels] /= factor
        values = 2 * block.attn.embed_dim + (channels := some(block.attn.embed_dim))
        block.attn.in_proj_weight[values] *= factor
        block.attn.out_proj.weight[:, channels] /= factor


def pixels_of(pictures: list[Picture], tower: Tower) -> np.ndarray:
    """(N, H, W, 3) uint8, as served."""
    return served_pixels([tower.preprocessing], Serving(), pictures)


def write_methods(source: Path, folder: Path, calibration: np.ndarray, tried: bool) -> dict[str, Path]:
    """The kept methods' files, and with `tried` those of onnxruntime's own quantizers."""
    files = {"fp32": source, "fp16": folder / "fp16.onnx", "int8": folder / "int8.onnx"}
    to_float16(source, files["fp16"])
    to_int8(source, files["int8"], calibration)
    if tried:
        logging.disable(logging.WARNING)  # they advise a preprocessing step
        for name, write in _tried(source, calibration).items():
            files[name] = folder / f"{name.replace(' ', '_')}.onnx"
            write(files[name])
    return files


def _tried(source: Path, calibration: np.ndarray) -> dict[str, Callable[[Path], None]]:
    constant: dict[str, Any] = {"extra_options": {"MatMulConstBOnly": True}, "weight_type": QuantType.QInt8}
    products: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm"]}

    def dynamic(**options: Any) -> Callable[[Path], None]:
        return lambda path: quantize_dynamic(source, path, **constant, **products, **options)

    def static(**options: Any) -> Callable[[Path], None]:
        options = {"activation_type": QuantType.QUInt8, "per_channel": True} | constant | options
        return lambda path: quantize_static(source, path, _Pictures(calibration), **options)

    return {
        "dynamic": dynamic(),
        "dynamic per channel": dynamic(per_channel=True),
        "dynamic 7 bit": dynamic(per_channel=True, reduce_range=True),
        "static QDQ products": static(**products),
        "static QDQ all": static(),
        "static QOperator": static(op_types_to_quantize=["MatMul"], quant_format=QuantFormat.QOperator),
    }


def embedder(path: Path, optimize: bool = True) -> Embed:
    """(B, H, W, 3) uint8 → (B, D) float32 through an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def embed_all(embed: Embed, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([embed(pixels[start : start + 8]) for start in range(0, len(pixels), 8)])


def speeds(files: dict[str, Path], pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Median images/s of each, one batch of each in turn."""
    embedders = {name: embedder(path) for name, path in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for round_ in range(rounds + 1):
        for name, embed in embedders.items():
            start = time.perf_counter()
            embed(pixels)
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: len(pixels) / float(np.median(seconds)) for name, seconds in times.items()}


def scorer(embed_dim: int, heads: Path | None, folder: Path) -> tuple[str, Embed]:
    """A head's name, and (B, D) embeddings → (B, 1) scores: LAION's NSFW head, or a random logistic one."""
    if heads is None or embed_dim not in _HEADS:
        direction = np.random.default_rng(3).standard_normal((embed_dim, 1)) * 10
        return "a random logistic head", lambda embedding: 1 / (1 + np.exp(-(embedding @ direction)))
    published = {"name": _HEADS[embed_dim], "file": heads.resolve() / _HEAD_FILES[embed_dim], "variant": "float16"}
    head = Head(name="nsfw", class_names=["safe", "nsfw"], published=Published.model_validate(published))
    with contextlib.redirect_stdout(sys.stderr):
        import_head(head, None, folder, Options(verify=200, accept_unknown_sha256=True))
        build_head(folder, 18)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return _HEADS[embed_dim], lambda embedding: np.asarray(session.run(["score"], {"embedding": embedding})[0])


def compare(expected: np.ndarray, found: np.ndarray, score: Embed) -> dict[str, float]:
    """Cosines, and what a head says of the two; `decisions_changed` at 0.5."""
    cosine, before, after = cosines(expected, found), score(expected), score(found)
    return {
        "cosine_min": round(float(cosine.min()), 7),
        "cosine_mean": round(float(cosine.mean()), 7),
        "score_max_change": round(float(np.abs(before - after).max()), 6),
        "decisions_changed": int(((before >= 0.5) != (after >= 0.5)).sum()),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = folder / "fp32.onnx"
    tower = export(arguments.model, arguments.pretrained, arguments.outliers, source)
    pixels, calibration = pixels_of(verification_pictures(), tower), pixels_of(calibration_pictures(), tower)
    files = write_methods(source, folder, calibration, arguments.tried)
    expected = embed_all(embedder(source), pixels)
    head, score = scorer(expected.shape[1], arguments.heads, folder / "head")
    speed = speeds(files, pixels[: arguments.batch], arguments.rounds)
    rows: dict[str, Any] = {}
    for name, path in files.items():
        embed = embedder(path)
        if name == "fp16":
            write_as_gpu(path, folder / "as_gpu.onnx")
            embed = embedder(folder / "as_gpu.onnx", optimize=False)
        alone = embed(pixels[:1])
        found = embed_all(embed, pixels)
        rows[name] = {
            "images_per_s": round(speed[name], 2),
            "relative": round(speed[name] / speed["fp32"], 2),
            "mib": round(sum(part.stat().st_size for part in folder.glob(f"{path.name}*")) / 2**20),
            "batch_dependence": float(np.abs(alone - found[:1]).max()),
        } | compare(expected, found, score)
    return {"head": head, "pictures": len(pixels), "methods": rows}


def print_table(rows: dict[str, Any]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"{'':22s}" + "".join(f"{column:>19s}" for column in columns))
    for name, row in rows.items():
        print(f"{name:22s}" + "".join(f"{row[column]:>19.7g}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="of open_clip (default %(default)s)")
    parser.add_argument("--pretrained", default="random", help="a tag, or random (default %(default)s)")
    parser.add_argument("--outliers", type=float, default=1, help="scale a few channels by this; ViTs of open_clip")
    parser.add_argument("--heads", type=Path, help="a folder with the published files; by default a random head")
    parser.add_argument("--rounds", type=int, default=5, help="timed batches of each (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images of a timed batch (default %(default)s)")
    parser.add_argument("--tried", action="store_true", help="add onnxruntime's own quantizers, which were not kept")
    arguments, told = parser.parse_args(), machine()
    asked = {"model": arguments.model, "pretrained": arguments.pretrained, "outliers": arguments.outliers}
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print_table(result["methods"])
    print_result("precision", told, **asked, **result)


if __name__ == "__main__":
    main()
