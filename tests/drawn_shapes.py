"""Labelled pictures that a small network learns in seconds, and recipes to fine-tune one on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pictures import noise
from PIL import ImageDraw

from recipes.schema import Recipe, parse_recipe

CLASSES = ["angular", "round"]


def draw(path: Path, kind: str, seed: int) -> None:
    """Write a shape of its class's colour somewhere on a background of noise."""
    rng = np.random.default_rng(seed)
    image = noise(48, 40, seed=seed).point([value // 2 for value in range(256)] * 3)
    left, top, size = rng.integers(2, 20), rng.integers(2, 14), rng.integers(14, 24)
    box = (int(left), int(top), int(left + size), int(top + size))
    pen = ImageDraw.Draw(image)
    if kind == "round":
        pen.ellipse(box, fill=(255, 220, 90))
    else:
        pen.rectangle(box, fill=(90, 120, 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def draw_folder(folder: Path, of_each: int = 24, classes: list[str] = CLASSES, seed: int = 0) -> Path:
    """A folder per class; the first class is of angular shapes, all others of round ones."""
    for at, kind in enumerate(classes):
        for number in range(of_each):
            draw(folder / kind / f"{number:03d}.png", "round" if at else "angular", 10_000 * seed + 1000 * at + number)
    return folder


def finetune_recipe(name: str = "tuned", head: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """A recipe whose encoder is fine-tuned, by default the small CNN, and whose head is its last layer."""
    own = {"model": "clipsieve_cnn", "image_size": 32, "epochs": 3, "learning_rate": 0.01, "batch_size": 8}
    one = {"name": "shape", "class_names": CLASSES, "classifier": {}} | (head or {})
    return parse_recipe({"name": name, "description": "x", "encoder": {"finetune": own | settings}, "heads": [one]})
