"""Material that every peer gets: the pictures, one set of weights in the peer's format, and the expected answers."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.peers.environments import PeerError
from benchmarks.peers.pictures import jpeg_pictures
from build.cosine import cosines
from build.head import Affine, folded, read_weights
from common.manifest import EncoderManifest, Preprocessing, read_encoder, read_head, write_atomically
from common.paths import encoder_folder, head_folder
from common.pixels import served_transform
from recipes.encoder_section import Encoder
from recipes.schema import Recipe, RecipeError

if TYPE_CHECKING:
    import torch

CHECKED = 6
"""Pictures that a peer must answer rightly before it is timed."""
SCORE_TOLERANCE = 0.002


@dataclass(frozen=True)
class PictureAnswer:
    """A peer's answer to one picture."""

    score: float | None = None
    """Score of the head's first label."""
    embedding: np.ndarray | None = None
    """(D,), of any length."""


@dataclass(frozen=True)
class Material:
    recipe: Recipe
    folder: Path
    """Folder of the files that peers read."""
    pictures: list[bytes]
    scores: np.ndarray
    """(CHECKED,) of the first pictures, by onnxruntime without a server."""
    embeddings: np.ndarray
    """(CHECKED, D) likewise."""

    @property
    def model(self) -> str:
        return self.recipe.encoder.model

    @property
    def view(self) -> Preprocessing:
        return read_encoder(self.onnx.parent).preprocessing[0]

    @property
    def weights(self) -> Path:
        """State dict of open_clip's whole model, or of timm's image model."""
        return self.folder / "weights.pt"

    @property
    def head(self) -> Path:
        """.npz with `weight` (L, D) and `bias` (L,) float32 under a sigmoid."""
        return self.folder / "head.npz"

    @property
    def picture_folder(self) -> Path:
        return self.folder / "pictures"

    @property
    def onnx(self) -> Path:
        return encoder_folder(self.recipe, "fp32") / "model.onnx"


def prepare(recipe: Recipe, folder: Path) -> Material:
    """Write what is missing in `folder` and compute what is right.

    Raises:
        RecipeError: the weights are not random ones, or not those of the built encoder.
        ManifestError: the encoder or the head is not built.
        PeerError: the head is not one affine map under a sigmoid, which every script can have.
    """
    encoder, head = read_encoder(encoder_folder(recipe, "fp32")), _affine_head(recipe)
    pictures = jpeg_pictures()
    embeddings = _embeddings(recipe, encoder, pictures[:CHECKED])
    scores = 1 / (1 + np.exp(-(embeddings @ head.matrix + head.offset)[:, 0]))
    material = Material(recipe, folder, pictures, scores, embeddings)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(material.head, weight=head.matrix.T.astype(np.float32), bias=head.offset.astype(np.float32))
    for number, data in enumerate(pictures):
        write_atomically(material.picture_folder / f"{number:03d}.jpg", data)
    _write_weights(material, encoder)
    return material


def difference(
    material: Material,
    answers: list[PictureAnswer],
    minimum_cosine: float,
    tolerance: float = SCORE_TOLERANCE,
    even_alone: bool = False,
) -> float:
    """Difference of a peer's answers to the first pictures from ours: 1 - cosine of embeddings, or absolute of scores.

    Args:
        even_alone: of scores, compare the pictures whose centre crop leaves out an even number of pixels.

    Raises:
        PeerError: too far.
    """
    if len(answers) != CHECKED:
        raise PeerError(f"answered {len(answers)} of {CHECKED} pictures")
    embeddings = [each.embedding for each in answers if each.embedding is not None]
    if embeddings:
        cosine = float(cosines(material.embeddings, np.stack(embeddings)).min())
        if not cosine >= minimum_cosine:
            raise PeerError(f"the cosine of its embeddings to ours is {cosine:.5f}, less than {minimum_cosine}")
        return 1 - cosine
    differences = np.abs(material.scores - np.array([each.score for each in answers], float))
    compared = [not even_alone or leaves_even(picture, material.view) for picture in material.pictures[:CHECKED]]
    if not any(compared):
        raise PeerError("none of the pictures can be compared: the centre crop of each leaves out an odd number")
    largest = float(differences[compared].max())
    if not largest <= tolerance:
        raise PeerError(f"its scores differ from ours by {largest:.4f}, at most {tolerance} is allowed")
    return largest


def leaves_even(picture: bytes, view: Preprocessing) -> bool:
    """True if the centre crop leaves out an even number of pixels along the longer edge, as resized.

    Of an odd number torchvision and transformers begin the crop one pixel apart, which to random weights is another
    picture.
    """
    with Image.open(io.BytesIO(picture)) as image:
        short, long = sorted(image.size)
    return (int((view.resize_size or view.image_size) * long / short) - view.image_size) % 2 == 0


def _affine_head(recipe: Recipe) -> Affine:
    folder = head_folder(recipe, recipe.heads[0])
    manifest = read_head(folder)
    steps = folded(manifest, read_weights(manifest, folder))
    if len(steps) != 1 or not isinstance(steps[0], Affine) or manifest.activation != "sigmoid":
        raise PeerError(f"head {manifest.name}: the peers have a linear head under a sigmoid; take a recipe with one")
    return steps[0]


def _embeddings(recipe: Recipe, encoder: EncoderManifest, pictures: list[bytes]) -> np.ndarray:
    """(N, D) float32 through the file that is served and the served preprocessing."""
    import onnxruntime

    transform = served_transform(encoder.preprocessing, recipe.serving)
    session = onnxruntime.InferenceSession(encoder_folder(recipe, "fp32") / "model.onnx")
    pixels = np.stack([transform(data) for data in pictures])
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def _write_weights(material: Material, manifest: EncoderManifest) -> None:
    """The whole model, open_clip's text tower too, as its library draws it from the recipe's seed."""
    encoder = material.recipe.encoder
    if encoder.pretrained or encoder.weights or encoder.concatenate:
        raise RecipeError(f"encoder {encoder.id}: the peers are compared with random weights only")
    if material.weights.is_file():
        return
    import torch

    from build.tower import weights_sha256

    model = _drawn_by_timm(encoder) if encoder.library == "timm" else _drawn_by_open_clip(encoder)
    visual = model if encoder.library == "timm" else model.get_submodule("visual")
    if weights_sha256(visual) != manifest.weights_sha256:
        raise RecipeError(f"encoder {encoder.id}: this torch draws other weights than were built; build it again")
    partial = material.weights.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(material.weights)


def _drawn_by_open_clip(encoder: Encoder) -> torch.nn.Module:
    import open_clip
    import torch

    torch.manual_seed(encoder.seed)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    model = open_clip.create_model(encoder.model)
    logging.disable(logging.NOTSET)
    return model


def _drawn_by_timm(encoder: Encoder) -> torch.nn.Module:
    from build.timm_tower import load_timm

    return load_timm(encoder)[0]
