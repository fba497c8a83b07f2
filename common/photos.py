"""The pictures that builds are verified and servers measured with: real photographs, and drawn ones beside them.

The photographs ship inside scikit-image and scikit-learn. The drawn pictures are what photographs are not:
flat, saturated, noisy, striped, tiny, very wide. Rounding errors show on them first.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SAMPLES = {
    "skimage": (
        "data",
        [
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "rocket.jpg",
            "hubble_deep_field.jpg",
            "retina.jpg",
            "camera.png",
        ],
    ),
    "sklearn": ("datasets/images", ["china.jpg", "flower.jpg"]),
}

_FOR_CALIBRATION = (
    *("brick", "cell", "clock_motion", "coins", "color", "grass", "gravel", "horse", "ihc", "moon"),
    *("motorcycle_left", "page", "text"),
)


@dataclass(frozen=True)
class Picture:
    """An encoded image file with a name for messages."""

    name: str
    data: bytes


def sample_photos() -> list[Path]:
    """Ordinary photographs, JPEG and PNG, colour and grey, 400 to 1400 pixels wide."""
    return [
        Path(spec.origin).parent / folder / name
        for package, (folder, names) in _SAMPLES.items()
        if (spec := importlib.util.find_spec(package)) is not None and spec.origin is not None
        for name in names
    ]


def verification_pictures() -> list[Picture]:
    """The photographs, then the drawn pictures (as PNG); the same every time."""
    photos = [Picture(path.name, path.read_bytes()) for path in sample_photos()]
    return photos + [Picture(f"drawn-{name}.png", _png(pixels)) for name, pixels in _drawn()]


def calibration_pictures() -> list[Picture]:
    """Other pictures of scikit-image's, to choose int8 scales with: photographs, textures, micrographs, pages."""
    folder = sample_photos()[0].parent
    return [Picture(f"{name}.png", (folder / f"{name}.png").read_bytes()) for name in _FOR_CALIBRATION]


def _drawn() -> Iterator[tuple[str, np.ndarray]]:
    """(H, W, 3) uint8 pictures."""
    rng = np.random.default_rng(0)
    for name, color in {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0)}.items():
        yield name, np.full((64, 96, 3), color, np.uint8)
    yield "noise", rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    yield "faint-noise", rng.integers(124, 132, (300, 400, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:256, 0:256]
    yield "gradient", np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    yield "checkerboard", _grey((rows + columns) % 2 * 255)
    yield "tiles", _grey((rows // 32 + columns // 32) % 2 * 255)
    yield "stripes", _grey((rows + 2 * columns) // 8 % 2 * 255)
    yield "tiny", rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    yield "wide", rng.integers(0, 256, (40, 30, 3), dtype=np.uint8).repeat(2, axis=0).repeat(40, axis=1)
    yield "tall", rng.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(40, axis=0).repeat(2, axis=1)
    for seed in range(3):
        yield f"shapes-{seed}", _shapes(np.random.default_rng(seed))
    yield "writing", _writing(rng)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)


def _shapes(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("RGB", (320, 240), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for index in range(8):
        left, top, width, height = rng.integers(0, 200, 4).tolist()
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((left, top, left + width, top + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def _writing(rng: np.random.Generator) -> np.ndarray:
    """Lines of short dark strokes on white, as a scanned page has them."""
    page = np.full((400, 300, 3), 255, np.uint8)
    for top in range(20, 380, 18):
        for left in range(20, 270, 6):
            height = int(rng.integers(0, 12))
            page[top : top + height, left : left + 3] = 30
    return page


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
