"""Embeddings of pictures with a palette beside those of the same pixels in RGB: the figures of serving/README.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import encoded
from PIL import Image

from benchmarks.trained_weights import WeightsMissing, dinov2_small
from common.photos import sample_photos
from common.pixels import served_transform
from recipes.serving_section import Serving


@pytest.fixture(scope="module")
def tower():
    try:
        return dinov2_small()
    except WeightsMissing as error:
        pytest.skip(str(error))


def embeddings(tower, images: list[Image.Image]) -> np.ndarray:
    transform = served_transform([tower.preprocessing], Serving())
    pixels = np.stack([transform(encoded(image, "PNG")) for image in images])
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (tower.preprocessing.mean, tower.preprocessing.std))
    with torch.no_grad():
        rows = tower.visual((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    return torch.nn.functional.normalize(rows, dim=1).numpy()


def test_a_palette_is_near_its_picture_in_rgb_and_black_and_white_is_not(tower):
    photos = [Image.open(path).convert("RGB") for path in sample_photos()]
    cosines = {}
    for kind, images in {
        "palette": [p.quantize(256) for p in photos],
        "1-bit": [p.convert("1") for p in photos],
    }.items():
        in_rgb = [image.convert("RGB") for image in images]
        cosines[kind] = (embeddings(tower, images) * embeddings(tower, in_rgb)).sum(axis=1)
    assert cosines["palette"].mean() == pytest.approx(0.994, abs=0.003)
    assert cosines["palette"].min() > 0.97
    assert cosines["1-bit"].mean() == pytest.approx(0.62, abs=0.1)
