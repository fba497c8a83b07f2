"""Changes that `decode: scaled` makes to the answers of trained networks, beside those of int8 and of saving again.

    make .trained/.installed .trained/.lite0
    python -m benchmarks.scaled_decoding --photographs FOLDER --stamps FOLDER
    python -m benchmarks.scaled_decoding --photographs FOLDER --stamps FOLDER --emoji FOLDER --cache FOLDER

--photographs   large JPEGs, such as those in Debian's packages mate-backgrounds and plasma-workspace-wallpapers
--stamps        Debian's package tuxpaint-stamps-default, unpacked, and
--emoji         npm's emoji-datasource-google: what heads are fitted on, as for `benchmarks.head_quality`

Each photograph is taken whole, in crops at random places that are still decoded at a half, and mirrored at its edges to
twice its width and height, which is decoded at a quarter; all with the finest detail it has. A DINOv2 ViT-S/14 embeds
them decoded exactly, scaled, from a JPEG that was saved again with quality 85 (what happens to a picture that is passed
on), and by its int8 file. For every head: the largest change of a score, and how many decisions change at 0.5 and at
thresholds where they change most easily, the nine deciles of the head's own scores on these pictures; of several
classes the pictures with another best class. An EfficientNet-Lite0 does the same with ImageNet's thousand classes,
without int8, which is for transformers. Takes about
three minutes. Prints tables, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.comparison import Comparison, comparisons_json, rounded
from benchmarks.head_quality import parsed, sets_of
from benchmarks.machine import machine, print_result
from benchmarks.preprocessing import jpeg
from benchmarks.results.views import terminal_text
from benchmarks.trained_weights import LITE0, dinov2_small, efficientnet_lite0
from build.cosine import cosines
from build.export import EncoderGraph, export_onnx
from build.onnx_embeddings import onnx_embeddings
from build.quantize import to_int8
from common.manifest import Preprocessing
from common.photos import Picture, calibration_pictures
from common.pixels import served_pixels
from common.timm_preprocessing import timm_preprocessing
from recipes.build_section import Build
from recipes.serving_section import Serving
from training.calibrate import activated
from training.finetune_run import normalised
from training.head import head_from_layers, logits_of
from training.head_fit import fit_head

CROPS = 12
"""Crops of each photograph."""
SAVED_AGAIN_QUALITY = 85
DECILES = np.arange(0.1, 0.95, 0.1)

Scores = Callable[[np.ndarray], np.ndarray]
"""(n, D) embeddings → (n, classes) probabilities; of two classes one column."""


def pictures_of(paths: Sequence[Path], least_edge: int) -> list[Picture]:
    """Photographs as they lie there, crops and mirrored ones; those whose shorter edge has so many pixels."""
    rng, pictures = np.random.default_rng(0), []
    for path in paths:
        with Image.open(path) as image:
            photograph = image.convert("RGB")
        if min(photograph.size) < least_edge:
            continue
        pictures.append(Picture(path.name, path.read_bytes()))
        pictures += [Picture(f"{path.name}, cropped", jpeg(cropped(photograph, least_edge, rng))) for _ in range(CROPS)]
        pictures.append(Picture(f"{path.name}, mirrored", jpeg(mirrored(photograph))))
    return pictures


def cropped(photograph: Image.Image, least_edge: int, rng: np.random.Generator) -> Image.Image:
    """A crop of the same aspect ratio, down to so many pixels along the shorter edge."""
    share = rng.uniform(least_edge / min(photograph.size), 1)
    width, height = (int(np.ceil(edge * share)) for edge in photograph.size)
    left, top = (
        int(rng.integers(0, edge - part + 1)) for edge, part in zip(photograph.size, (width, height), strict=True)
    )
    return photograph.crop((left, top, left + width, top + height))


def mirrored(photograph: Image.Image) -> Image.Image:
    height, width = photograph.height // 2, photograph.width // 2
    return Image.fromarray(np.pad(np.asarray(photograph), ((height, height), (width, width), (0, 0)), "symmetric"))


def saved_again(picture: Picture) -> Picture:
    with Image.open(io.BytesIO(picture.data)) as image:
        return Picture(picture.name, jpeg(image.convert("RGB"), SAVED_AGAIN_QUALITY))


def views_of(view: Preprocessing, pictures: list[Picture]) -> dict[str, np.ndarray]:
    """(N, H, W, 3) uint8 of the pictures decoded exactly, scaled, and after being saved again."""
    scaled = view.model_copy(update={"decode": "scaled"})
    return {
        "exact": served_pixels([view], Serving(), pictures),
        "scaled": served_pixels([scaled], Serving(), pictures),
        "saved again": served_pixels([view], Serving(), [saved_again(picture) for picture in pictures]),
    }


def fitted_heads(arguments: argparse.Namespace) -> dict[str, Scores]:
    """Heads on the labelled sets, fitted as `training.fit` does."""
    heads = {}
    for pictures in sets_of(arguments):
        fitted = fit_head(pictures.data, pictures.head(0), "cpu", pictures.split(0))
        heads[pictures.name] = scores_of(head_from_layers(fitted.layers, fitted.tensors))
    return heads


def scores_of(head: Any) -> Scores:
    def scores(embeddings: np.ndarray) -> np.ndarray:
        logits = logits_of(head, embeddings)
        return activated(logits, "sigmoid" if logits.shape[1] == 1 else "softmax")

    return scores


def changes(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Compare a head's scores of the same pictures, (n, classes) each: largest change, shares that decide anew."""
    figures = {"largest_change": float(np.abs(before - after).max())}
    if before.shape[1] > 1:
        return figures | {"another_best_class": float((before.argmax(axis=1) != after.argmax(axis=1)).mean())}
    limits = np.quantile(before, DECILES)
    changed = ((before >= limits) != (after >= limits)).mean()
    return figures | {
        "changed_at_a_half": float(((before >= 0.5) != (after >= 0.5)).mean()),
        "changed_at_deciles": float(changed),
    }


def of_an_encoder(pictures: list[Picture], heads: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Rows of the DINOv2: for each change its cosines and what the heads say."""
    tower = dinov2_small()
    pixels = views_of(tower.preprocessing, pictures)
    with tempfile.TemporaryDirectory() as folder:
        full, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        with contextlib.redirect_stdout(sys.stderr):
            export_onnx(EncoderGraph([tower]), Build().opset, full)
            to_int8(full, int8, served_pixels([tower.preprocessing], Serving(), calibration_pictures()))
        embeddings = {name: onnx_embeddings(full, each) for name, each in pixels.items()}
        embeddings["int8"] = onnx_embeddings(int8, pixels["exact"])
        embeddings["int8, scaled"] = onnx_embeddings(int8, pixels["scaled"])
    exact = embeddings.pop("exact")
    rows = []
    for name, embedding in embeddings.items():
        cosine = cosines(exact, embedding)
        row: dict[str, Any] = {"change": name, "cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min())}
        for head, scores in heads.items():
            row |= {f"{head}: {key}": value for key, value in changes(scores(exact), scores(embedding)).items()}
        rows.append(row)
    return rows


def of_a_classifier(pictures: list[Picture]) -> list[dict[str, Any]]:
    """Rows of the EfficientNet-Lite0."""
    import timm
    import torch
    from timm.data.config import resolve_model_data_config

    with tempfile.TemporaryDirectory() as folder:
        weights = efficientnet_lite0(Path(folder)) / "model.safetensors"
        model = timm.create_model(LITE0, checkpoint_path=str(weights)).eval()
    view = timm_preprocessing(resolve_model_data_config(model))

    def scores(pixels: np.ndarray) -> np.ndarray:
        blocks = torch.from_numpy(pixels).split(16)
        with torch.inference_mode():
            logits = torch.cat([model(normalised(block.movedim(-1, 1), view)) for block in blocks])
        return activated(logits.numpy(), "softmax")

    probabilities = {name: scores(each) for name, each in views_of(view, pictures).items()}
    exact = probabilities.pop("exact")
    return [{"change": name} | changes(exact, each) for name, each in probabilities.items()]


def comparisons(rows: list[dict[str, Any]]) -> list[Comparison]:
    """The decisions that scaled decoding changes, beside those of int8."""
    by_name = {row["change"]: row for row in rows}
    keys = [key for key in by_name["scaled"] if key.endswith(("deciles", "class"))]
    return [
        Comparison(f"scaled, {key.replace('_', ' ')}", by_name["scaled"][key], by_name["int8"][key], False, "int8")
        for key in keys
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaled_decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of large JPEGs")
    arguments, hardware = parsed(parser, argv), machine()
    view = dinov2_small().preprocessing
    least_edge = 4 * (view.resize_size or view.image_size)  # below it nothing is decoded smaller
    paths = sorted(path for path in arguments.photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    pictures = pictures_of(paths, least_edge)
    if not pictures:
        parser.error(f"{arguments.photographs}: no JPEG of at least {least_edge} pixels along both edges")
    rows = of_an_encoder(pictures, fitted_heads(arguments))
    result = {"photographs": len(paths), "pictures": len(pictures), "encoder": rows}
    result |= {"classifier": of_a_classifier(pictures)}
    result = rounded(result, 6) | {"comparisons": comparisons_json(comparisons(rows))}
    print(terminal_text({"benchmark": "scaled_decoding"} | result))
    print_result("benchmarks.scaled_decoding", hardware, **result)


if __name__ == "__main__":
    main()
