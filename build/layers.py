"""Hidden layers of a vision transformer, concatenated into its embedding.

Layer 0 is the model's own output. Layer n is what the n-th block from the end puts out, with no norm and
no projection after it: its class token where the model takes its output from that, else the mean of
its patch tokens (models that average, and those with an attention pool).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT

from recipes.schema import RecipeError


class HiddenLayers(torch.nn.Module):
    """A model's hidden layers side by side: (B, 3, H, W) float32 → (B, sum of the layers' widths) float32.

    The layers are a buffer, so that they are part of the weights' sum: a head trained on some layers
    never meets an encoder of others.
    """

    layers: torch.Tensor

    def __init__(self, model: torch.nn.Module, layers: list[int]) -> None:
        """RecipeError: the model is no vision transformer, or has fewer blocks than a layer asks for."""
        super().__init__()
        depth = len(blocks_of(model))
        if max(layers) > depth:
            raise RecipeError(f"encoder.layers {layers}: the model has {depth} blocks; the layers are 0 to {depth}")
        self.model = model
        self.requested = layers
        self.indices = sorted({depth - layer for layer in layers if layer})
        self.register_buffer("layers", torch.tensor(layers))

    def widths(self, embed_dim: int) -> list[int]:
        """Width of each layer in an embedding of `embed_dim` values: blocks are all as wide, the output may differ."""
        trunk: Any = _trunk(self.model)
        width = int(trunk.transformer.width if isinstance(trunk, OpenClipViT) else trunk.embed_dim)
        output = embed_dim - width * sum(layer > 0 for layer in self.requested)
        return [width if layer else output for layer in self.requested]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output, hidden = _forward(self.model, inputs, self.indices)
        depth = len(blocks_of(self.model))
        parts = [hidden[self.indices.index(depth - layer)] if layer else output for layer in self.requested]
        return torch.cat(parts, dim=-1)


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer blocks, first to last; RecipeError for other architectures."""
    trunk: Any = _trunk(model)
    if isinstance(trunk, OpenClipViT):
        return cast(torch.nn.ModuleList, trunk.transformer.resblocks)
    if isinstance(trunk, TimmViT | Eva):
        return cast(torch.nn.ModuleList, trunk.blocks)
    raise RecipeError(
        f"encoder.layers: hidden layers are those of vision transformers, this model is a {type(trunk).__name__}; "
        "leave layers out, or choose a ViT"
    )


def summary_of_tokens(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Summarize a block's output, (B, N, width) → (B, width): the class token, or the mean of the patch tokens."""
    return tokens[:, 0] if _takes_class_token(model) else tokens[:, _prefix_tokens(model) :].mean(dim=1)


def _forward(
    model: torch.nn.Module, inputs: torch.Tensor, indices: list[int]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model's output (B, embed_dim), and the summary (B, width) of each block in `indices`."""
    trunk: Any = _trunk(model)
    if isinstance(trunk, OpenClipViT):
        features = trunk.forward_intermediates(inputs, indices=indices, output_fmt="NLC", output_extra_tokens=True)
        prefixes, patches = features["image_intermediates_prefix"], features["image_intermediates"]
        output = cast(torch.Tensor, features["image_features"])
    else:
        has_prefix = _prefix_tokens(model) > 0
        last, blocks = trunk.forward_intermediates(
            inputs, indices=indices, return_prefix_tokens=has_prefix, output_fmt="NLC"
        )
        patches = [pair[0] for pair in blocks] if has_prefix else blocks
        prefixes = [pair[1] for pair in blocks] if has_prefix else []
        output = trunk.forward_head(last)
        output = model.head(output) if isinstance(model, TimmModel) else output
    if _takes_class_token(model):
        return output, [tokens[:, 0] for tokens in prefixes]
    return output, [tokens.mean(dim=1) for tokens in patches]


def _trunk(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, or the timm model inside open_clip's wrapper."""
    return cast(torch.nn.Module, model.trunk) if isinstance(model, TimmModel) else model


def _takes_class_token(model: torch.nn.Module) -> bool:
    trunk: Any = _trunk(model)
    return trunk.pool_type != "avg" if isinstance(trunk, OpenClipViT) else trunk.global_pool == "token"


def _prefix_tokens(model: torch.nn.Module) -> int:
    trunk: Any = _trunk(model)
    return 1 if isinstance(trunk, OpenClipViT) else int(trunk.num_prefix_tokens)
