"""Makes the proof that is installed with a model repository: pictures, with their verified embeddings and scores.

A server whose answers to them miss the recipe's limits never becomes ready: see `common.proof`. The embeddings are
those that `build.encoder` and `build.engine` left beside their files; heads are run here, by onnxruntime.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from build.dali_parity import dali_pixels
from build.dali_pipeline import devices
from build.encoder import VERIFICATION
from build.onnx_embeddings import onnx_embeddings
from build.repository_check import RepositoryError
from build.verify import saved_embeddings
from common.manifest import EncoderManifest, HeadManifest, read_engine
from common.paths import encoder_folder
from common.photos import Picture, verification_pictures
from common.pixels import served_module, served_transform
from common.plans import manifest_path
from common.proof import Proof, ProofHead, ProofPicture
from recipes.schema import Recipe
from recipes.serving_section import Serving

COUNT = 4
CHOICE = (
    *("rocket.jpg", "drawn-gradient.png", "drawn-writing.png", "drawn-shapes-0.png"),
    # These follow for recipes whose formats or limits leave out some of the above:
    *("flower.jpg", "drawn-tiles.png", "drawn-stripes.png", "drawn-checkerboard.png", "drawn-tiny.png"),
    *("drawn-red.png", "drawn-white.png", "drawn-black.png"),
)
"""Small files of the verification, by preference: a photograph, and what shows rounding first."""
LARGE_PHOTOGRAPH = "retina.jpg"
"""The first picture of a proof of `decode: scaled`: the others are too small to be scaled."""
MOST_BYTES = 300_000
"""The largest file of a proof."""
LOSSLESS = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100},
    "JPEG": {"quality": 100, "subsampling": 0},  # loses nothing of flat blocks
    "GIF": {},
    "BMP": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
"""Pillow's options to write each format in which a proof may be with the least loss; the pixels are compared then."""


def make_proof(
    recipe: Recipe,
    encoder: EncoderManifest,
    heads: list[tuple[Path, HeadManifest]],
    plans: list[Path],
    dali: Path | None = None,
) -> Proof:
    """Choose the pictures, and collect what proof.json holds.

    Args:
        heads: each with the folder of its model.onnx.
        plans: those that are installed instead of the ONNX file.
        dali: the folder of the pipelines of a recipe with DALI.

    Raises:
        RepositoryError: no picture fits the recipe, an embedding is below its limit, or a head's scores are not finite.
        ManifestError: the embeddings of the verification are missing.
    """
    pictures = verification_pictures()
    served = plans[0].parent if plans else encoder_folder(recipe)
    reference = _rows_of(saved_embeddings(encoder_folder(recipe, "fp32"), "torch"), pictures, recipe)
    verified = _rows_of(saved_embeddings(served, "embeddings"), pictures, recipe)
    chosen = choose_pictures(recipe, encoder, pictures)
    if dali is not None:
        verified |= _through_dali(dali, recipe, encoder, chosen)
    minimum = recipe.build.minimum_cosine
    both = [[rows[name] for name in chosen] for rows in (reference, verified)]
    proof = Proof(
        recipe=recipe.name,
        encoder=encoder.fingerprint().model_dump(),
        onnx_sha256=encoder.onnx_sha256,
        precision=encoder.precision,
        minimum_cosine=min(recipe.build.limit, minimum.dali) if dali is not None else recipe.build.limit,
        maximum_score_difference=recipe.build.maximum_score_difference,
        batch_size=min(len(chosen), recipe.serving.max_batch_size),
        verified_on=verified_on(encoder, plans),
        pictures=tuple(
            ProofPicture(name, file, reference[name].tolist(), verified[name].tolist()) for name, file in chosen.items()
        ),
        heads=tuple(head_proof(folder, head, both[0], both[1], recipe.shadows) for folder, head in heads),
    )
    for picture in proof.pictures:
        if not picture.cosine >= proof.minimum_cosine:
            raise RepositoryError(
                f"{picture.name}: the verified cosine {picture.cosine:.7f} is below the limit {proof.minimum_cosine:g} "
                "that servers are held to; build again (make engines), or lower build.minimum_cosine if you mean to"
            )
    return proof


def choose_pictures(recipe: Recipe, encoder: EncoderManifest, pictures: list[Picture]) -> dict[str, bytes]:
    """Choose a few files that the recipe serves, by the name of the picture in the verification.

    Raises:
        RepositoryError: there is none.
    """
    by_name = {picture.name: picture for picture in pictures}
    scaled = any(view.decode == "scaled" for view in encoder.preprocessing)
    names = [LARGE_PHOTOGRAPH, *CHOICE] if scaled else CHOICE
    chosen: dict[str, bytes] = {}
    for name in names:
        if len(chosen) < COUNT and name in by_name:
            file = servable_file(by_name[name], recipe.serving, encoder)
            chosen |= {} if file is None else {name: file}
    if chosen:
        return chosen
    raise RepositoryError(
        f"recipe {recipe.name}: none of the verification's pictures can be written in serving.formats "
        f"{recipe.serving.formats} within max_bytes {recipe.serving.max_bytes} and max_pixels "
        f"{recipe.serving.max_pixels} without changing its pixels, so a server could not be proved; allow PNG or JPEG "
        f"and pictures of 100,000 pixels"
    )


def servable_file(picture: Picture, serving: Serving, encoder: EncoderManifest) -> bytes | None:
    """The file, or the same picture in a format of the recipe, with the very pixels; None when neither is served."""
    transform = served_transform(encoder.preprocessing, serving)
    expected = served_transform(encoder.preprocessing, Serving())(picture.data)

    def fits(file: bytes) -> bool:
        try:
            return len(file) <= MOST_BYTES and bool((transform(file) == expected).all())
        except served_module().ImageError:
            return False

    if fits(picture.data):
        return picture.data
    return next((file for file in _lossless_files(picture, serving) if fits(file)), None)


def _lossless_files(picture: Picture, serving: Serving):
    """The picture in each format of the recipe, in colour and, where it has none, in grey."""
    with Image.open(io.BytesIO(picture.data)) as opened:
        colour = opened.convert("RGB")
    grey = colour.convert("L")
    images = [colour, grey] if grey.convert("RGB").tobytes() == colour.tobytes() else [colour]
    for format in (name for name in serving.formats if name in LOSSLESS):
        for image in images:
            file = io.BytesIO()
            image.save(file, format, **LOSSLESS[format])
            yield file.getvalue()


def head_proof(
    folder: Path, head: HeadManifest, reference: list[np.ndarray], verified: list[np.ndarray], shadows: set[str]
) -> ProofHead:
    """Run `folder`/model.onnx on the reference and on the verified embeddings, each N of (D,) float32.

    Raises:
        RepositoryError: a score is not finite.
    """
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    scores, image_scores = (
        np.asarray(session.run(["score"], {"embedding": np.stack(embeddings)})[0])
        for embeddings in (reference, verified)
    )
    if not (np.isfinite(scores).all() and np.isfinite(image_scores).all()):
        raise RepositoryError(f"{folder / 'model.onnx'}: scores of the proof's pictures are not finite; build it again")
    return ProofHead(head.name, head.revision, scores.tolist(), None if head.name in shadows else image_scores.tolist())


def verified_on(encoder: EncoderManifest, plans: list[Path]) -> str:
    """Name the machine: `NVIDIA L4 with TensorRT 10.16.1.11`, or `AMD EPYC (avx2) with onnxruntime 1.31.0`."""
    if plans:
        engines = [read_engine(manifest_path(plan)) for plan in plans]
        return ", ".join(f"{engine.gpu} with TensorRT {engine.tensorrt}" for engine in engines)
    cpu = encoder.cpu or "a CPU that its build did not record"
    return f"{cpu} with onnxruntime {encoder.versions.get('onnxruntime', 'of an unknown version')}"


def _rows_of(embeddings: np.ndarray, pictures: list[Picture], recipe: Recipe) -> dict[str, np.ndarray]:
    """The rows of an array, each (D,) float32, by the name of their picture."""
    if len(embeddings) != len(pictures):
        raise RepositoryError(
            f"{encoder_folder(recipe) / VERIFICATION}: {len(embeddings)} embeddings, the verification now has "
            f"{len(pictures)} pictures; remove the folder and run: make engines"
        )
    return {picture.name: row for picture, row in zip(pictures, embeddings, strict=True)}


def _through_dali(
    folder: Path, recipe: Recipe, encoder: EncoderManifest, chosen: dict[str, bytes]
) -> dict[str, np.ndarray]:
    """Embeddings of the JPEGs among the pictures as DALI decodes them here, by the fp32 file."""
    jpegs = [Picture(name, file) for name, file in chosen.items() if file.startswith(b"\xff\xd8")]
    if not jpegs:
        return {}
    pixels = dali_pixels(folder, devices()[-1], encoder, recipe.serving, jpegs)
    embeddings = onnx_embeddings(encoder_folder(recipe, "fp32") / "model.onnx", pixels)
    return {picture.name: row for picture, row in zip(jpegs, embeddings, strict=True)}
