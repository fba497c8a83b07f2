"""The images that every peer scores: photographs at three sizes and drawn pictures, as JPEG files."""

from __future__ import annotations

import io
import random

from PIL import Image

from common.photos import verification_pictures

MEGAPIXELS = (0.3, 1.0, 2.0)
QUALITY = 90


def jpeg_pictures() -> list[bytes]:
    """Encoded JPEG files in a fixed random order, so that any stretch of them is of mixed size."""
    files = []
    for picture in verification_pictures():
        with Image.open(io.BytesIO(picture.data)) as image:
            rgb = image.convert("RGB")
        sizes = [rgb.size] if picture.name.startswith("drawn-") else [scaled_size(rgb.size, mp) for mp in MEGAPIXELS]
        files += [jpeg(rgb, size) for size in sizes]
    random.Random(0).shuffle(files)
    return files


def scaled_size(size: tuple[int, int], megapixels: float) -> tuple[int, int]:
    """Size of the same shape with so many million pixels."""
    width, height = size
    factor = (megapixels * 1e6 / (width * height)) ** 0.5
    return max(1, round(width * factor)), max(1, round(height * factor))


def jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    """An encoded file of the image at a size."""
    file = io.BytesIO()
    sized = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    sized.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
