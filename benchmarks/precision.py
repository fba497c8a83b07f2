"""Gains and losses of an encoder's ONNX file in fp16 and int8: images/s, size, embeddings, and a head's scores.

    python -m benchmarks.precision --models ViT-B-32-quickgelu
    python -m benchmarks.precision --models ViT-L-14-quickgelu --heads ../shared/heads --rounds 3
    python -m benchmarks.precision --models ViT-B-32-quickgelu --outliers 40 --tried
    python -m benchmarks.precision --models ViT-B-32-quickgelu ViT-L-14-quickgelu dinov2-vit-s-14 --instruction-sets all

Prints a table for each model and instruction set (see `benchmarks.instruction_sets`), and as its last line JSON with
the machine and versions. Images/s are medians of interleaved rounds on onnxruntime's CPU, relative to fp32 of the same
run. Photographs and drawn pictures are compared with fp32; int8 is calibrated on other pictures. `fp16` is compared as
a GPU computes it, every fp16 tensor rounded to fp16: this CPU would compute in fp32 between the Casts. `--pretrained
random`, the default, says nothing of trained weights; `dinov2-vit-s-14` is trained (`make .trained/.installed`).
`--outliers` scales a few channels as trained vision transformers have them. `--tried` adds what was not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from benchmarks.comparison import Comparison, comparison_table, comparisons_json
from benchmarks.instruction_sets import INSTRUCTION_SETS, NATIVE, available
from benchmarks.machine import machine, print_result
from benchmarks.onnx_runs import Encoder, Runs, run_on
from benchmarks.tables import print_table
from benchmarks.trained_weights import dinov2_small
from build.cosine import cosines
from build.float16 import to_float16, write_as_gpu
from build.head import build_head
from build.quantize import to_int8
from common.photos import Picture, calibration_pictures, verification_pictures
from common.pixels import served_pixels
from recipes.head_section import Head, Published
from recipes.schema import Recipe, load_recipe
from recipes.serving_section import Serving
from training.import_head import Options, import_head

if TYPE_CHECKING:
    from build.tower import Tower

_HEADS = {512: "laion-nsfw-b32", 768: "laion-nsfw-l14"}
_HEAD_FILES = {512: "clip_autokeras_nsfw_b32.zip", 768: "clip_autokeras_binary_nsfw.zip"}

TRAINED = "dinov2-vit-s-14"

TARGET_SPEEDS = {"avx2": 1.3, "avx-vnni": 2.5, "avx512-vnni": 2.5}
"""int8 ÷ fp32 images/s, by instruction set."""
TARGET_COSINE = 0.999
"""The least of int8 beside fp32, for trained weights."""

Embed = Callable[[np.ndarray], np.ndarray]


class _Pictures(CalibrationDataReader):
    """(N, H, W, 3) uint8 for onnxruntime's own calibration, four at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.batches = iter([{"pixels": pixels[start : start + 4]} for start in range(0, len(pixels), 4)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.batches, None)


def export(model: str, pretrained: str, outliers: float, path: Path) -> Tower:
    """Write the fp32 encoder; with `outliers`, some channels of a ViT of open_clip are that much larger."""
    from build.export import EncoderGraph, export_onnx
    from build.tower import load_tower

    recipe = recipe_of(model, pretrained)
    tower = dinov2_small() if model == TRAINED else load_tower(recipe.encoder)
    if outliers > 1:
        add_outliers(tower.visual, outliers)
    with contextlib.redirect_stdout(sys.stderr):
        export_onnx(EncoderGraph([tower]), recipe.build.opset, path)
    return tower


def recipe_of(model: str, pretrained: str) -> Recipe:
    recipe = load_recipe("nsfw-vit-b-32")
    weights = {"model": model, "pretrained": None if pretrained == "random" else pretrained}
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=weights)})


def add_outliers(visual: Any, factor: float) -> None:
    """Make a few inputs of each product `factor` times larger and their weights smaller: the function stays."""
    import torch

    visual.requires_grad_(False)  # the weights are changed in place
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


def write_methods(
    source: Path, folder: Path, calibration: np.ndarray, tried: bool, with_float16: bool = True
) -> dict[str, Path]:
    """The kept methods' files, and with `tried` those of onnxruntime's own quantizers."""
    files = {"fp32": source, "int8": folder / "int8.onnx"}
    if with_float16:
        files["fp16"] = folder / "fp16.onnx"
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


def compare(expected: np.ndarray, actual: np.ndarray, score: Embed) -> dict[str, float]:
    """Cosines, and what a head says of the two; `decisions_changed` at 0.5."""
    cosine, before, after = cosines(expected, actual), score(expected), score(actual)
    return {
        "cosine_min": round(float(cosine.min()), 7),
        "cosine_mean": round(float(cosine.mean()), 7),
        "score_max_change": round(float(np.abs(before - after).max()), 6),
        "decisions_changed": int(((before >= 0.5) != (after >= 0.5)).sum()),
    }


def measure(model: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of each method, by instruction set; everything is compared with fp32 of the same set."""
    source = folder / "fp32.onnx"
    tower = export(model, arguments.pretrained, arguments.outliers, source)
    pixels, calibration = pixels_of(verification_pictures(), tower), pixels_of(calibration_pictures(), tower)
    files = write_methods(source, folder, calibration, arguments.tried, with_float16=not arguments.no_fp16)
    encoders = {name: Encoder(str(path), str(path)) for name, path in files.items()}
    if "fp16" in files:
        write_as_gpu(files["fp16"], folder / "as_gpu.onnx")
        encoders["fp16"] = Encoder(str(files["fp16"]), str(folder / "as_gpu.onnx"), optimize=False)
    mib = {name: round(sum(p.stat().st_size for p in folder.glob(f"{f.name}*")) / 2**20) for name, f in files.items()}
    (embed_dim,) = onnx.load(source, load_external_data=False).graph.output[0].type.tensor_type.shape.dim[1:]
    head, score = scorer(embed_dim.dim_value, arguments.heads, folder / "head")
    sets: dict[str, Any] = {}
    for instruction_set in arguments.instruction_sets:
        runs = run_on(instruction_set, encoders, pixels, folder, arguments.rounds, arguments.batch)
        rows = {name: {"mib": mib[name]} | figures(run, runs["fp32"], score) for name, run in runs.items()}
        print(f"{model}, {instruction_set}")
        print_table([{"": name} | row for name, row in rows.items()])
        sets[instruction_set] = rows
    pretrained = "its own" if model == TRAINED else arguments.pretrained
    return {
        "model": model,
        "pretrained": pretrained,
        "head": head,
        "pictures": len(pixels),
        "instruction_sets": sets,
    }


def figures(run: Runs, full: Runs, score: Embed) -> dict[str, float]:
    """One method beside fp32."""
    return {
        "images_per_s": round(run.images_per_s, 2),
        "relative": round(run.images_per_s / full.images_per_s, 2),
        "batch_dependence": run.batch_dependence,
    } | compare(full.embeddings, run.embeddings, score)


def comparisons(encoders: list[dict[str, Any]]) -> list[Comparison]:
    """Targets of int8 beside its figures, for each model and instruction set."""
    rows = []
    for encoder in encoders:
        for instruction_set, methods in encoder["instruction_sets"].items():
            what, int8 = f"int8, {encoder['model']}, {instruction_set}", methods["int8"]
            speed = next((least for flag, least in TARGET_SPEEDS.items() if instruction_set.startswith(flag)), None)
            if speed is not None:
                rows.append(Comparison(f"{what}: images/s ÷ fp32", int8["relative"], speed, True))
            if encoder["model"] == TRAINED:
                rows.append(Comparison(f"{what}: minimum cosine", int8["cosine_min"], TARGET_COSINE, True))
                rows.append(Comparison(f"{what}: decisions changed", int8["decisions_changed"], 0, False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="+", default=["ViT-B-32-quickgelu"], help=f"of open_clip, or {TRAINED} (default: B/32)"
    )
    parser.add_argument("--pretrained", default="random", help="a tag, or random (default %(default)s)")
    parser.add_argument("--outliers", type=float, default=1, help="scale a few channels by this; ViTs of open_clip")
    parser.add_argument(
        "--instruction-sets",
        nargs="+",
        default=[NATIVE],
        choices=[*INSTRUCTION_SETS, NATIVE, "all"],
        help="lesser processors to imitate, or all that can be had (default: this one as it is)",
    )
    parser.add_argument("--heads", type=Path, help="a folder with the published files; by default a random head")
    parser.add_argument("--rounds", type=int, default=5, help="timed batches of each (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images of a timed batch (default %(default)s)")
    parser.add_argument("--no-fp16", action="store_true", help="leave fp16 out, whose imitation takes longest")
    parser.add_argument("--tried", action="store_true", help="add onnxruntime's own quantizers, which were not kept")
    arguments, hardware = parser.parse_args(), machine()
    if "all" in arguments.instruction_sets:
        arguments.instruction_sets = [name for name in available() if name != "sse4"]
    encoders = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            encoders.append(measure(model, arguments, Path(folder)))
    compared = comparisons_json(comparisons(encoders))
    if compared:
        print(comparison_table(compared, aligned=True))
    figures = {"outliers": arguments.outliers, "encoders": encoders, "comparisons": compared}
    print_result("benchmarks.precision", hardware, **figures)


if __name__ == "__main__":
    main()
