"""The sample photographs as JPEG files of one size."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

from PIL import Image

from benchmarks.peers.pictures import QUALITY, scaled_size
from recipes.photos import sample_photos


@cache
def photographs(megapixels: float) -> list[bytes]:
    """Each in its own shape, resampled to so many million pixels."""
    return [_jpeg(path, megapixels) for path in sample_photos()]


def _jpeg(path: Path, megapixels: float) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    rgb.resize(scaled_size(rgb.size, megapixels), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
