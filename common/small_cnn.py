"""A small convolutional network, `clipsieve_cnn`, registered with timm: the baseline that any CPU trains in a minute.

Importing this module registers it, so that `timm.create_model`, and what is built on it, knows the name.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

CNN = "clipsieve_cnn"


class SmallCnn(torch.nn.Module):
    """Two convolutions with pooling, a dense layer and a classifier, as timm expects a model to be.

    Pictures of any size from 16 pixels on: (B, 3, H, W) float32 → (B, num_classes).
    """

    num_features = head_hidden_size = 128

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = torch.nn.Conv2d(in_chans, 32, kernel_size=5, stride=2, padding=2)
        self.conv2 = torch.nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.pool = torch.nn.MaxPool2d(2)
        self.dense = torch.nn.Linear(2 * 64, self.num_features)
        self.drop = torch.nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes)

    def _classifier(self, num_classes: int) -> torch.nn.Module:
        return torch.nn.Linear(self.num_features, num_classes) if num_classes > 0 else torch.nn.Identity()

    def get_classifier(self) -> torch.nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head = self._classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers from below, for freezing and learning rates."""
        return {"stem": r"^conv1", "blocks": [(r"^conv2", None), (r"^dense", (99999,))]}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) → (B, 64, H/8, W/8)."""
        maps = self.pool(torch.relu(self.conv1(images)))
        return self.pool(torch.relu(self.conv2(maps)))

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """(B, 64, H, W) → (B, num_classes), or the features before the classifier."""
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        features = torch.relu(self.dense(pooled))
        return features if pre_logits else self.head(self.drop(features))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


default_cfgs = generate_default_cfgs(
    {
        f"{CNN}.untrained": {
            "input_size": (3, 200, 200),
            "num_classes": 1000,
            "pool_size": (25, 25),
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv1",
            "classifier": "head",
        }
    }
)


@register_model
def clipsieve_cnn(pretrained: bool = False, **kwargs: Any) -> SmallCnn:
    """The model as timm creates it."""
    return build_model_with_cfg(SmallCnn, CNN, pretrained, **kwargs)
