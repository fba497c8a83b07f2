"""The encoder's parity check: the library's transform and towers in torch against what will be served.

Pixels must be bit-equal (of `decode: scaled` those that its exact sibling would serve; what scaling does is measured
by `build.decode_parity`); embeddings must agree to the recipe's minimum cosine. Photographs and drawn pictures
(`common.photos`) are the inputs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from build.cosine import compare_embeddings, cosines
from build.errors import ParityError
from build.layers import HiddenLayers, blocks_of, summary_of_tokens
from build.tower import Tower, views_of
from common.manifest import Parity
from common.photos import Picture, verification_pictures
from common.pixels import served_pixels
from recipes.build_section import Precision
from recipes.schema import Recipe
from recipes.serving_section import Serving

BATCH = 8
_CONVERSIONS = ("MaybeToTensor", "LibraryTensor")
"""Steps in which a library's transform makes a float tensor of a picture."""


@dataclass(frozen=True)
class Reference:
    """The library's pixels and embeddings of the verification's pictures.

    Attributes:
        names: (N,) of the pictures.
        pixels: (N, H, W, 3) uint8, all views, as served.
        embeddings: (N, embed_dim) float32, from torch on these pixels.
        logits: (N, classes) float32 of the whole image classifier that the tower is of; None of other towers.
    """

    names: list[str]
    pixels: np.ndarray
    embeddings: np.ndarray
    logits: np.ndarray | None = None


def torch_reference(towers: list[Tower], recipe: Recipe) -> Reference:
    """Run the pictures through the served transform, which is checked, and then through each tower in torch.

    Raises:
        ParityError: a pixel of a picture differs; naming the picture and how many.
    """
    pictures = verification_pictures()
    for tower in {tower.preprocessing: tower for tower in towers}.values():
        _check_pixels(tower, pictures)
    views = views_of(towers)
    pixels = served_pixels(views, Serving(), pictures)  # whatever formats and sizes the recipe serves
    squares = dict(zip(views, _squares(pixels, [view.image_size for view in views]), strict=True))
    embeddings = [_torch_embeddings(tower, squares[tower.preprocessing]) for tower in towers]
    names, together = [picture.name for picture in pictures], np.concatenate(embeddings, axis=1)
    logits = _torch_logits(towers[0], squares[towers[0].preprocessing]) if len(towers) == 1 else None
    return Reference(names, pixels, together, logits)


def _squares(pixels: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The views in (N, H, W, 3) pixels, where they lie below one another: (N, S, S, 3) for each of the sizes."""
    ends = np.cumsum(sizes).tolist()
    return [pixels[:, end - size : end, :size] for end, size in zip(ends, sizes, strict=True)]


def _check_pixels(tower: Tower, pictures: list[Picture]) -> None:
    """Compare the tower's view, decoded exactly, with the library's transform, bit by bit."""
    view = tower.preprocessing.model_copy(update={"decode": "exact"})
    for picture, served in zip(pictures, served_pixels([view], Serving(), pictures), strict=True):
        if unequal := int((served != _library_pixels(tower, picture)).sum()):
            raise ParityError(
                f"{picture.name}: {unequal} of {served.size} pixel values differ from {tower.library}'s transform"
            )


def check_embeddings(reference: Reference, embeddings: np.ndarray, recipe: Recipe, precision: Precision) -> Parity:
    """Compare (N, embed_dim) float32 embeddings with torch's.

    Raises:
        ParityError: naming the worst picture, the figure and the limit.
    """
    limit = recipe.build.minimum_cosine.at(precision)
    row_cosines = cosines(reference.embeddings, embeddings)
    worst = int(np.nan_to_num(row_cosines, nan=-2.0).argmin())
    if not row_cosines[worst] >= limit:  # NaN fails as well
        raise ParityError(
            f"{reference.names[worst]}: cosine {row_cosines[worst]:.7f} between torch and {precision} ONNX is below "
            f"build.minimum_cosine.{precision} {limit}"
        )
    return compare_embeddings(reference.embeddings, embeddings)


def _library_pixels(tower: Tower, picture: Picture) -> np.ndarray:
    """The library's transform up to, and not including, its conversion to a float tensor."""
    with Image.open(io.BytesIO(picture.data)) as image:
        for step in _steps(tower)[0]:
            image = step(image)
        return np.asarray(image)


def _steps(tower: Tower) -> tuple[list[Any], list[Any]]:
    """The library's transform in two parts: before its conversion to a float tensor, and from there on."""
    steps = list(tower.transform.transforms)
    conversions = [at for at, step in enumerate(steps) if type(step).__name__ in _CONVERSIONS]
    assert conversions, f"the library's transform no longer has a step {' or '.join(_CONVERSIONS)}"
    return steps[: conversions[0]], steps[conversions[0] :]


def _inputs(tower: Tower, pixels: np.ndarray) -> torch.Tensor:
    """(N, S, S, 3) uint8 → (N, 3, S, S) float32, with the library's own pixel normalisation."""
    inputs: list[Any] = [Image.fromarray(square) for square in pixels]
    for step in _steps(tower)[1]:
        inputs = [step(square) for square in inputs]
    return torch.stack(inputs)


@torch.inference_mode()
def _torch_logits(tower: Tower, pixels: np.ndarray) -> np.ndarray | None:
    """Classify (N, S, S, 3) uint8 by the whole model: (N, classes) float32; None of a tower that is no classifier's."""
    if tower.classifier is None:
        return None
    logits = [tower.classifier.logits(batch) for batch in _inputs(tower, pixels).split(BATCH)]
    return torch.cat(logits).numpy()


@torch.inference_mode()
def _torch_embeddings(tower: Tower, pixels: np.ndarray) -> np.ndarray:
    """Embed (N, S, S, 3) uint8 in torch: (N, embed_dim) float32, with the library's own pixel normalisation."""
    visual = tower.visual
    embeddings = []
    for batch in _inputs(tower, pixels).split(BATCH):
        hooked = isinstance(visual, HiddenLayers)
        embeddings.append(embed_through_hooks(visual, batch) if hooked else visual(batch))
    together = torch.cat(embeddings)
    return (torch.nn.functional.normalize(together, dim=-1) if tower.normalize else together).numpy()


def embed_through_hooks(visual: HiddenLayers, inputs: torch.Tensor) -> torch.Tensor:
    """Compute what `visual` does, through hooks on the blocks of the model's ordinary forward pass."""
    outputs: list[torch.Tensor] = []

    def keep(_block: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        outputs.append(output)

    hooks = [block.register_forward_hook(keep) for block in blocks_of(visual.model)]
    try:
        final = visual.model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    layers = visual.layers.tolist()
    return torch.cat([summary_of_tokens(visual.model, outputs[-n]) if n else final for n in layers], dim=-1)
