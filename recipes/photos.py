"""Real photographs that ship inside scikit-image and scikit-learn, for parity checks and benchmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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


def sample_photos() -> list[Path]:
    """Ordinary photographs, JPEG and PNG, colour and grey, 400 to 1400 pixels wide."""
    return [
        Path(spec.origin).parent / folder / name
        for package, (folder, names) in _SAMPLES.items()
        if (spec := importlib.util.find_spec(package)) is not None and spec.origin is not None
        for name in names
    ]
