"""timm's ViT and a linear head as a folder that transformers' ViTForImageClassification reads: the very same weights.

Names, shapes and settings follow from the state dict of a plain ViT; nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.manifest import Preprocessing

HEAD_WIDTH = 64
LABEL = "round"
_SINGLE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_QKV = ("query", "key", "value")


def renamed(state: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's state dict, and a head's `weight` (L, D) and `bias` (L,), under transformers' names.

    Raises:
        ValueError: a tensor that a plain ViT does not have.
    """
    tensors = {f"classifier.{kind}": head[kind] for kind in ("weight", "bias")}
    for name, tensor in state.items():
        tensors |= {_SINGLE[name]: tensor} if name in _SINGLE else _of_block(name, tensor)
    return tensors


def _of_block(name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """One tensor of a transformer block; queries, keys and values are three there."""
    start, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    module, _, kind = rest.rpartition(".")
    block = f"vit.encoder.layer.{number}"
    if start == "blocks" and module == "attn.qkv":
        parts = zip(_QKV, np.split(tensor, 3), strict=True)
        return {f"{block}.attention.attention.{each}.{kind}": np.ascontiguousarray(part) for each, part in parts}
    if start == "blocks" and module in _BLOCK:
        return {f"{block}.{_BLOCK[module]}.{kind}": tensor}
    raise ValueError(f"{name}: no tensor of a plain ViT")


def model_config(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """config.json for these weights and one label under a sigmoid."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": width,
        "intermediate_size": len(state["blocks.0.mlp.fc1.bias"]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // HEAD_WIDTH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # timm's
        "image_size": round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "problem_type": "multi_label_classification",
        "id2label": {"0": LABEL},
        "label2id": {LABEL: 0},
        "torch_dtype": "float32",
    }


def image_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json of timm's preprocessing: shortest edge, bicubic, centre crop."""
    size = preprocessing.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",  # ViT's own does not crop
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "size": {"shortest_edge": preprocessing.resize_size or size},
        "crop_size": {"height": size, "width": size},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocessing.interpolation],
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def write_folder(weights: Path, head: Path, preprocessing: Preprocessing, folder: Path) -> Path:
    """The folder with weights and configs; made once."""
    import torch
    from safetensors.numpy import save_file

    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    loaded = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name: tensor.numpy() for name, tensor in loaded.items()}
    save_file(renamed(state, np.load(head)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(image_config(preprocessing)))
    (folder / "config.json").write_text(json.dumps(model_config(state)))
    return folder
