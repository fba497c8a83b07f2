"""Loads the served preprocessing code, so that training and building use the very file Triton runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from common.manifest import Preprocessing
from common.paths import MODEL_REPOSITORY
from common.photos import Picture
from recipes.serving_section import Serving

_SERVED_FOLDER = MODEL_REPOSITORY / "preprocess" / "1"


def served_module() -> ModuleType:
    """model_repository/preprocess/1/clip_pixels.py, imported once under the name `clip_pixels`."""
    for name in (
        "clip_files",
        "clip_kinds",
        "clip_heif",
        "clip_tiff",
        "clip_ends",
        "clip_pixels",
    ):  # the last imports the others
        import_served(name)
    return sys.modules["clip_pixels"]


def pixel_parameters(views: Sequence[Preprocessing], serving: Serving) -> dict[str, str]:
    """The `parameters` of preprocess/config.pbtxt: everything the transform needs to know."""
    resize = {} if all(view.resize_size is None for view in views) else {"resize_size": _resize_sizes(views)}
    (decode,) = {view.decode for view in views}  # a picture is decoded once
    crop = {} if all(view.crop == "round" for view in views) else {"crop": ",".join(view.crop for view in views)}
    return (
        (resize if decode == "exact" else resize | {"decode": decode})
        | crop
        | {
            "image_size": ",".join(str(view.image_size) for view in views),
            "resize_mode": ",".join(view.resize_mode for view in views),
            "interpolation": ",".join(view.interpolation for view in views),
            "fill_color": ",".join(str(view.fill_color) for view in views),
            "max_bytes": str(serving.max_bytes),
            "max_pixels": str(serving.max_pixels),
            "formats": ",".join(serving.formats),
            "max_frames": str(serving.max_frames),
            "max_scans": str(serving.max_scans),
        }
    )


def served_transform(views: Sequence[Preprocessing], serving: Serving):
    """The transform as Triton will run it: `transform(image_bytes)` → (H, W, 3) uint8, one view below another.

    Raises `clip_pixels.ImageError` (with `.code` and `.message`) for an image it refuses.
    """
    return served_module().Transform.from_parameters(pixel_parameters(views, serving))


def served_pixels(views: Sequence[Preprocessing], serving: Serving, pictures: Sequence[Picture]) -> np.ndarray:
    """The pictures as Triton will hand them to the encoder: (N, H, W, 3) uint8."""
    transform = served_transform(views, serving)
    return np.stack([transform(picture.data) for picture in pictures])


def import_served(name: str, folder: Path = _SERVED_FOLDER) -> ModuleType:
    """A file of a served model, imported once; what it imports from beside it must be imported before."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _resize_sizes(views: Sequence[Preprocessing]) -> str:
    return ",".join(str(view.resize_size or view.image_size) for view in views)
