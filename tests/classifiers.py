"""Small image classifiers with random weights, in folders as their libraries save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn

LEVELS = ["neutral", "low", "medium", "high"]
SIZE = 64
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_SMALL |= {"image_size": SIZE, "patch_size": 16}
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViT", _SMALL, "ViTImageProcessor", {"size": {"height": SIZE, "width": SIZE}}),
    "swin": (
        "Swin",
        {"image_size": SIZE, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        "ViTImageProcessor",
        {"size": {"height": SIZE, "width": SIZE}, "resample": 3},
    ),
    "convnextv2": (
        "ConvNextV2",
        {"image_size": SIZE, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIZE}, "crop_pct": 0.87},
    ),
    "beit": (
        "Beit",
        _SMALL | {"use_relative_position_bias": True},
        "BeitImageProcessor",
        {"size": {"height": 72, "width": 72}, "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}},
    ),
    "dinov2": (
        "Dinov2",
        _SMALL,
        "BitImageProcessor",
        {"size": {"shortest_edge": 75}, "crop_size": {"height": SIZE, "width": SIZE}},
    ),
    "siglip": (
        "Siglip",
        {"vision_config": _SMALL},
        "SiglipImageProcessor",
        {"size": {"height": SIZE, "width": SIZE}},
    ),
    "efficientnet": (
        "EfficientNet",
        {"image_size": SIZE, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
        "EfficientNetImageProcessor",
        {"size": {"height": SIZE, "width": SIZE}, "rescale_factor": 1 / 127.5, "rescale_offset": True},
    ),
}
TRANSFORMERS = tuple(_TRANSFORMERS)


def timm_folder(folder: Path, labels: list[str] | None = None, model: str = "vit_tiny_patch16_224", **options) -> Path:
    """A classifier of timm as `save_for_hf` writes it; by default a ViT of two blocks for 64 pixels."""
    labels = LEVELS if labels is None else labels
    options = options or ({"img_size": SIZE, "depth": 2} if model == "vit_tiny_patch16_224" else {})
    torch.manual_seed(1)
    classifier = timm.create_model(model, num_classes=options.pop("num_classes", len(labels)), **options)
    last = cast(Any, classifier).get_classifier()
    for layer in last if isinstance(last, tuple) else (last,):
        _apart(layer)
    named = {"label_names": labels} if labels else None
    timm.models.save_for_hf(classifier, str(folder), named, safe_serialization=True)
    return folder


def transformers_folder(
    folder: Path, kind: str = "vit", labels: list[str] | None = None, *, config: Any = None, **processor: Any
) -> Path:
    """A classifier of transformers and its image processor as `save_pretrained` writes them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make transformers")
    labels = LEVELS if labels is None else labels
    name, small, processor_name, prepared = _TRANSFORMERS[kind]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
    torch.manual_seed(2)
    made = getattr(transformers, f"{name}Config")(**small | (names if labels else {"num_labels": 4}) | (config or {}))
    classifier = getattr(transformers, f"{name}ForImageClassification")(made)
    for convolution in (part for part in classifier.modules() if isinstance(part, nn.Conv2d)):
        nn.init.kaiming_normal_(convolution.weight)  # the library's own is so small that EfficientNet sees nothing
    _apart([part for part in classifier.modules() if isinstance(part, nn.Linear)][-1])
    classifier.save_pretrained(folder)
    getattr(transformers, processor_name)(**prepared | processor).save_pretrained(folder)
    return folder


def _apart(layer: nn.Module) -> None:
    """Weights of a last layer that tell pictures apart, as a trained one's do."""
    linear = cast(nn.Linear, layer)
    nn.init.normal_(linear.weight, std=0.5)
    nn.init.normal_(linear.bias, std=0.5)
