"""Measures what `serving: {preprocess: dali}` does to embeddings: JPEGs decoded by DALI against exact decoding.

    python -m build.dali_parity --recipe R

Runs the code and the pipelines that would be served, on this machine's CPU and on its GPU if it has one, and the
encoder's fp32 file on both sets of pixels. The pictures are the verification's, as JPEGs, one of each EXIF orientation
among them. `build.verify` does the same for a recipe that serves so. One line of JSON for each device on stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from build.cosine import cosines
from build.dali_pipeline import Device, batches_module, decoder_module, devices, write_pipelines
from build.errors import INTERRUPTED, ParityError
from build.onnx_embeddings import onnx_embeddings
from common.instances import Processors, with_instances
from common.manifest import EncoderManifest, read_encoder
from common.paths import encoder_folder
from common.photos import Picture, verification_pictures
from common.pixels import served_pixels, served_transform
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Recipe
from recipes.serving_section import Serving

ORIENTATION = 0x0112  # in EXIF
QUALITY = 90


@dataclass(frozen=True)
class DaliParity:
    """A comparison of DALI's pixels and their embeddings with the exact ones."""

    device: Device
    dali: str
    """Version of DALI."""
    pictures: int
    cosine_mean: float
    cosine_min: float
    worst: str
    """The picture with the lowest cosine."""
    pixel_mean_abs_difference: float
    pixel_max_abs_difference: int


def measure_dali(recipe: Recipe) -> list[DaliParity]:
    """Measure DALI on each device that this machine has, whatever the recipe serves with.

    Raises:
        DaliError: DALI is not installed.
        ParityError: a picture's cosine is below the recipe's build.minimum_cosine.dali.
        ManifestError: the encoder is missing.
    """
    folder = encoder_folder(recipe, "fp32")
    encoder, pictures = read_encoder(folder), jpeg_pictures()
    exact = served_pixels(encoder.preprocessing, recipe.serving, pictures)
    expected = onnx_embeddings(folder / "model.onnx", exact)
    parities = []
    with tempfile.TemporaryDirectory() as pipelines:
        manifest = write_pipelines(encoder.preprocessing, recipe.serving.max_batch_size, Path(pipelines))
        for device in devices():
            pixels = dali_pixels(Path(pipelines), device, encoder, recipe.serving, pictures)
            embeddings = onnx_embeddings(folder / "model.onnx", pixels)
            parity = _compare(device, manifest.versions["dali"], pictures, exact, pixels, cosines(expected, embeddings))
            _check(parity, recipe.build.minimum_cosine.dali)
            parities.append(parity)
    return parities


def dali_pixels(
    folder: Path, device: Device, encoder: EncoderManifest, serving: Serving, pictures: list[Picture]
) -> np.ndarray:
    """Decode JPEGs with the served code into (N, H, W, 3) uint8; none may fall back to the exact transform.

    Raises:
        ParityError: one of them would not be given to DALI.
    """
    batches, transform = batches_module(), served_transform(encoder.preprocessing, serving)
    threads = with_instances(serving, Processors.of_this_machine()).preprocess_instances
    limits = {"max_batch_size": serving.max_batch_size, "threads": threads}
    decoder = decoder_module().DaliDecoder(folder, gpu=None if device == "cpu" else 0, **limits)
    jpegs = {index: batches.sift(transform, picture.data) for index, picture in enumerate(pictures)}
    for index, jpeg in jpegs.items():
        if jpeg is None:
            raise ParityError(
                f"{pictures[index].name}: not a JPEG within the recipe's limits, so DALI would not decode it"
            )
    run = batches.Batches(transform, decoder, **limits)
    try:
        parts = [
            run.decoded([jpegs[index] for index in indices])
            for indices in batches.runs(jpegs, serving.max_batch_size, serving.max_pixels)
        ]
    finally:
        run.close()
    return np.stack([pixels for part in parts for pixels in part])


def jpeg_pictures() -> list[Picture]:
    """The verification's pictures as JPEGs; other formats are encoded again, with the EXIF orientations in turn."""
    return [
        picture if picture.data.startswith(b"\xff\xd8") else _as_jpeg(picture, 1 + index % 8)
        for index, picture in enumerate(verification_pictures())
    ]


def _as_jpeg(picture: Picture, orientation: int) -> Picture:
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    with Image.open(io.BytesIO(picture.data)) as image:
        image.convert("L" if image.mode == "L" else "RGB").save(file, "JPEG", quality=QUALITY, exif=exif)
    return Picture(f"{Path(picture.name).stem}.jpg", file.getvalue())


def _compare(
    device: Device,
    version: str,
    pictures: list[Picture],
    exact: np.ndarray,
    pixels: np.ndarray,
    row_cosines: np.ndarray,
) -> DaliParity:
    differences = np.abs(exact.astype(np.int16) - pixels)
    return DaliParity(
        device,
        version,
        len(pictures),
        float(row_cosines.mean()),
        float(row_cosines.min()),
        pictures[int(np.nan_to_num(row_cosines, nan=-2.0).argmin())].name,
        float(differences.mean()),
        int(differences.max()),
    )


def _check(parity: DaliParity, limit: float) -> None:
    if not parity.cosine_min >= limit:  # NaN fails as well
        raise ParityError(
            f"{parity.worst}: cosine {parity.cosine_min:.7f} between DALI's pixels ({parity.device}) and exact ones "
            f"is below build.minimum_cosine.dali {limit}; lower the limit, or use serving.preprocess: python"
        )


def describe(parity: DaliParity) -> str:
    """The comparison as one line for people."""
    return (
        f"DALI {parity.dali} ({parity.device}) against exact pixels, {parity.pictures} JPEGs: cosine "
        f"{parity.cosine_mean:.6f} mean, {parity.cosine_min:.6f} min ({parity.worst}); pixels differ by "
        f"{parity.pixel_mean_abs_difference:.3f} of 255 on average, {parity.pixel_max_abs_difference} at most"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m build.dali_parity", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser)
    arguments = parser.parse_args(argv)
    for parity in measure_dali(recipe_of(arguments)):
        print(describe(parity), file=sys.stderr)
        print(json.dumps(asdict(parity)))


if __name__ == "__main__":
    sys.exit(run_step("build.dali_parity", main, INTERRUPTED))
