"""open_clip and torch, as the usual script has them: one image file → the score of a linear head."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image


class Classifier:
    """An image tower and a head, loaded once.

    Args:
        model: open_clip's name of it.
        weights: a state dict of it (.pt).
        head: .npz with `weight` (L, D) and `bias` (L,), whose sigmoid is the score.
    """

    def __init__(self, model: str, weights: str, head: str) -> None:
        loaded: Any = open_clip.create_model_and_transforms(model, pretrained=weights)
        self.model, _, self.transform = loaded
        self.model.eval()
        arrays = np.load(head)
        self.head = torch.nn.Linear(arrays["weight"].shape[1], arrays["weight"].shape[0])
        self.head.load_state_dict({name: torch.from_numpy(arrays[name]) for name in ("weight", "bias")})

    def pixels(self, data: bytes) -> torch.Tensor:
        """(3, H, W) float32 of an encoded file."""
        return self.transform(Image.open(io.BytesIO(data)))

    def scores(self, pixels: torch.Tensor) -> list[float]:
        """Scores of the first label: (B, 3, H, W) float32 → B of them."""
        with torch.inference_mode():
            embedding = self.model.encode_image(pixels, normalize=True)
            return torch.sigmoid(self.head(embedding))[:, 0].tolist()

    def score(self, data: bytes) -> float:
        """Score of the first label."""
        return self.scores(self.pixels(data).unsqueeze(0))[0]
