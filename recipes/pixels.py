"""Loads the served preprocessing code, so that training and building use the very file Triton runs."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from recipes.manifest import Preprocessing
from recipes.paths import MODEL_REPOSITORY
from recipes.schema import Serving

_SERVED_FILE = MODEL_REPOSITORY / "preprocess" / "1" / "clip_pixels.py"


def served_module() -> ModuleType:
    """model_repository/preprocess/1/clip_pixels.py, imported once under the name `clip_pixels`."""
    if "clip_pixels" not in sys.modules:
        spec = importlib.util.spec_from_file_location("clip_pixels", _SERVED_FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["clip_pixels"] = module
        spec.loader.exec_module(module)
    return sys.modules["clip_pixels"]


def pixel_parameters(preprocessing: Preprocessing, serving: Serving) -> dict[str, str]:
    """The `parameters` of preprocess/config.pbtxt: everything the transform needs to know."""
    resize = {} if preprocessing.resize_size is None else {"resize_size": str(preprocessing.resize_size)}
    return resize | {
        "image_size": str(preprocessing.image_size),
        "resize_mode": preprocessing.resize_mode,
        "interpolation": preprocessing.interpolation,
        "fill_color": str(preprocessing.fill_color),
        "max_bytes": str(serving.max_bytes),
        "max_pixels": str(serving.max_pixels),
        "formats": ",".join(serving.formats),
    }


def served_transform(preprocessing: Preprocessing, serving: Serving):
    """The transform as Triton will run it: `transform(image_bytes)` → (H, W, 3) uint8.

    Raises `clip_pixels.ImageError` (with `.code` and `.message`) for an image it refuses.
    """
    return served_module().Transform.from_parameters(pixel_parameters(preprocessing, serving))
