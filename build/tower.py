"""Loads the image tower of a recipe, with the preprocessing that its library gives it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import Compose

from build.classifier import Classifier
from build.classifier_folder import classifier_folder
from build.layers import HiddenLayers
from build.open_clip_tower import load_open_clip
from build.timm_tower import load_timm, load_timm_classifier
from build.transformers_tower import load_transformers
from common.manifest import Preprocessing, WeightsSource
from recipes.encoder_section import Encoder


@dataclass(frozen=True)
class Tower:
    """An image encoder in torch.

    Attributes:
        library: `open_clip`, `timm` or `transformers`, for messages.
        visual: (B, 3, H, W) float32, normalised pixels → (B, embed_dim) float32, not L2-normalised.
        transform: the library's own, PIL image → (3, H, W) float32.
        preprocessing: the same, as data, with the recipe's way of decoding files.
        normalize: whether the exported encoder L2-normalises what `visual` puts out.
        source: where the weights came from.
        weights_sha256: of every parameter and buffer of `visual`.
        classifier: of which `visual` is the backbone, with its last layer; None of a tower that is no classifier's.
    """

    library: str
    visual: torch.nn.Module
    transform: Any
    preprocessing: Preprocessing
    normalize: bool
    source: WeightsSource
    weights_sha256: str
    classifier: Classifier | None = None


def load_tower(encoder: Encoder) -> Tower:
    """Load one tower of a recipe's `encoder` section, in eval mode, float32, on the CPU.

    Raises:
        RecipeError: unknown model or tag (with the nearest names), a missing or unfit weights file,
            weights that could not be downloaded (with what to fetch and where to put it), hidden
            layers that the model does not have, or a preprocessing that is not served.
    """
    visual, transform, preprocessing, source, classifier = _load(encoder)
    preprocessing = preprocessing.model_copy(update={"decode": encoder.decode})
    visual = visual if encoder.layers == [0] else HiddenLayers(visual, encoder.layers)
    visual = visual.eval().float()
    sha256 = weights_sha256(visual)
    return Tower(encoder.library, visual, transform, preprocessing, encoder.normalize, source, sha256, classifier)


def _load(
    encoder: Encoder,
) -> tuple[torch.nn.Module, Compose, Preprocessing, WeightsSource, Classifier | None]:
    """What the library of the encoder makes of it."""
    folder = classifier_folder(encoder) if encoder.library != "open_clip" else None
    if folder is None:
        load = load_timm if encoder.library == "timm" else load_open_clip
        return *load(encoder), None
    load_classifier = load_timm_classifier if encoder.library == "timm" else load_transformers
    classifier, transform, preprocessing = load_classifier(encoder, folder)
    return classifier.backbone, transform, preprocessing, classifier.description.source, classifier


def views_of(towers: list[Tower]) -> list[Preprocessing]:
    """The towers' views of a picture, each once."""
    return list(dict.fromkeys(tower.preprocessing for tower in towers))


def layer_widths(towers: list[Tower], embed_dim: int) -> list[int]:
    """Widths of one tower's hidden layers in its embedding; of several towers, and of an output alone, none."""
    visual = towers[0].visual
    return visual.widths(embed_dim) if len(towers) == 1 and isinstance(visual, HiddenLayers) else []


def pixel_dims(views: list[Preprocessing]) -> list[int]:
    """H, W and 3 of all views below one another."""
    sizes = [view.image_size for view in views]
    return [sum(sizes), max(sizes), 3]


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash of a module's tensors with their names, whatever file they were read from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.contiguous().numpy()).cast("B") if tensor.numel() else b"")
    return digest.hexdigest()


def combined_sha256(towers: list[Tower]) -> str:
    """The sum of one tower's weights, or the sum of several towers' sums in order."""
    if len(towers) == 1:
        return towers[0].weights_sha256
    return hashlib.sha256(" ".join(tower.weights_sha256 for tower in towers).encode()).hexdigest()
