"""Reads the preprocessing that a data config of timm describes, as data."""

from __future__ import annotations

import math
from typing import Any

from common.manifest import Preprocessing
from recipes.schema import RecipeError

RESIZE_MODES = {"center": "shortest", "squash": "squash"}
"""timm's crop_mode → what it is called here."""


def timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """The preprocessing that timm's data config describes.

    Raises:
        RecipeError: the input is not square RGB, or its resize is not served.
    """
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise RecipeError(f"timm input_size {config['input_size']}: only square RGB inputs are supported")
    if config["crop_mode"] not in RESIZE_MODES:
        raise RecipeError(f"timm crop_mode {config['crop_mode']!r}: only {', '.join(RESIZE_MODES)} are supported")
    if config["interpolation"] not in ("bicubic", "bilinear"):
        raise RecipeError(f"timm interpolation {config['interpolation']!r}: only bicubic and bilinear are supported")
    resize_size = math.floor(height / config["crop_pct"])  # as timm rounds it
    return Preprocessing.model_validate(
        {
            "image_size": height,
            "resize_size": None if resize_size == height else resize_size,
            "resize_mode": RESIZE_MODES[config["crop_mode"]],
            "interpolation": config["interpolation"],
            "mean": config["mean"],
            "std": config["std"],
        }
    )
