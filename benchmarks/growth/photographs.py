"""The sample photographs as JPEG files of one size."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from benchmarks.peers.pictures import jpeg, scaled_size
from common.photos import sample_photos


@cache
def photographs(megapixels: float) -> list[bytes]:
    """Photographs in their own shapes, resampled to so many million pixels."""
    return [_jpeg(path, megapixels) for path in sample_photos()]


def _jpeg(path: Path, megapixels: float) -> bytes:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    return jpeg(rgb, scaled_size(rgb.size, megapixels))
