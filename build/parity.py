"""The encoder's parity check: the library's transform and tower in torch against what will be served.

Pixels must be bit-equal; embeddings must agree to the recipe's minimum cosine. Photographs that
ship inside scikit-image and scikit-learn are the inputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from build.cosine import cosines
from build.layers import HiddenLayers, blocks_of, summary_of_tokens
from build.tower import Tower
from recipes.photos import sample_photos
from recipes.pixels import served_transform
from recipes.schema import Recipe


class ParityError(RuntimeError):
    """What would be served is not what the model's authors would compute."""


def check_parity(tower: Tower, onnx_path: Path, recipe: Recipe) -> dict[str, float]:
    """Compare pixels and embeddings on real photographs.

    Returns:
        photos, unequal_pixels, cosine_min, cosine_mean, max_abs_difference.

    Raises:
        ParityError: naming the photograph, the figure and the limit.
    """
    photos = sample_photos()
    transform = served_transform(tower.preprocessing, recipe.serving)
    served = np.stack([transform(path.read_bytes()) for path in photos])  # (B, H, W, 3) uint8
    expected = np.stack([_library_pixels(tower, path) for path in photos])
    unequal = (served != expected).reshape(len(photos), -1).sum(axis=1)
    for path, count in zip(photos, unequal, strict=True):
        if count:
            raise ParityError(
                f"{path.name}: {count} of {served[0].size} pixel values differ from "
                f"{recipe.encoder.library}'s transform"
            )

    expected_embeddings = _torch_embeddings(tower, photos, recipe.encoder.normalize)
    embeddings = _onnx_embeddings(onnx_path, served)
    found = cosines(expected_embeddings, embeddings)
    worst = int(found.argmin())
    if not found[worst] >= recipe.build.minimum_cosine:  # NaN fails as well
        raise ParityError(
            f"{photos[worst].name}: cosine {found[worst]:.7f} between torch and ONNX is below "
            f"build.minimum_cosine {recipe.build.minimum_cosine}"
        )
    return {
        "photos": len(photos),
        "unequal_pixels": int(unequal.sum()),
        "cosine_min": float(found.min()),
        "cosine_mean": float(found.mean()),
        "max_abs_difference": float(np.abs(expected_embeddings - embeddings).max()),
    }


def _library_pixels(tower: Tower, path: Path) -> np.ndarray:
    """The library's transform up to, and not including, its conversion to a float tensor."""
    with Image.open(path) as image:
        for step in tower.transform.transforms:
            if type(step).__name__ == "MaybeToTensor":
                return np.asarray(image)
            image = step(image)
    raise AssertionError("the library's transform no longer has a MaybeToTensor step")


@torch.inference_mode()
def _torch_embeddings(tower: Tower, photos: list[Path], normalize: bool) -> np.ndarray:
    inputs = []
    for path in photos:
        with Image.open(path) as image:
            inputs.append(tower.transform(image))
    batch = torch.stack(inputs)
    visual = tower.visual
    embeddings = embed_through_hooks(visual, batch) if isinstance(visual, HiddenLayers) else visual(batch)
    return (torch.nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings).numpy()


def embed_through_hooks(visual: HiddenLayers, inputs: torch.Tensor) -> torch.Tensor:
    """What `visual` computes, gathered by hooks on the blocks of the model's ordinary forward pass."""
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


def _onnx_embeddings(onnx_path: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])

    def embed(batch: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["embedding"], {"pixels": batch})[0])

    together = embed(pixels)
    one_by_one = [embed(pixels[index : index + 1]) for index in range(len(pixels))]
    if not np.allclose(np.concatenate(one_by_one), together, atol=1e-4):
        raise ParityError("the embedding of an image depends on the batch it is in")
    return together
