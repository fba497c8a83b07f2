"""Loads the image tower of a recipe, with the preprocessing that its library gives it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from build.layers import HiddenLayers
from build.open_clip_tower import load_open_clip
from build.timm_tower import load_timm
from recipes.manifest import Preprocessing
from recipes.schema import Encoder


@dataclass(frozen=True)
class Tower:
    """An image encoder in torch.

    Attributes:
        visual: (B, 3, H, W) float32, normalised pixels → (B, embed_dim) float32, not L2-normalised.
        transform: the library's own, PIL image → (3, H, W) float32.
        preprocessing: the same, as data.
        weights_sha256: of every parameter and buffer of `visual`.
    """

    visual: torch.nn.Module
    transform: Any
    preprocessing: Preprocessing
    weights_sha256: str


def load_tower(encoder: Encoder) -> Tower:
    """Load the tower of a recipe's `encoder` section, in eval mode, float32, on the CPU.

    Raises:
        RecipeError: unknown model or tag (with the nearest names), a missing or unfit weights file,
            weights that could not be downloaded (with what to fetch and where to put it), hidden
            layers that the model does not have, or a preprocessing that is not served.
    """
    load = load_timm if encoder.library == "timm" else load_open_clip
    visual, transform, preprocessing = load(encoder)
    visual = visual if encoder.layers == [0] else HiddenLayers(visual, encoder.layers)
    visual = visual.eval().float()
    return Tower(visual, transform, preprocessing, weights_sha256(visual))


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash of a module's tensors with their names, whatever file they were read from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
