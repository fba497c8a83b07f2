"""open_clip's weights as a folder that transformers' CLIPModel reads, for peers that know no open_clip.

Names, shapes and settings follow from the state dict of a plain ViT CLIP; nothing is fetched, the tokenizer's merges
are those that ship inside open_clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HEAD_WIDTH = 64
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SINGLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so there
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_TOWERS = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}


def renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """open_clip's state dict under the names of transformers' CLIPModel.

    Raises:
        ValueError: a tensor that a plain ViT CLIP does not have.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if name in _SINGLE:
            tensors[_SINGLE[name]] = tensor
        elif name in _TRANSPOSED:
            tensors[_TRANSPOSED[name]] = np.ascontiguousarray(tensor.T)
        else:
            tensors |= _of_block(name, tensor)
    return tensors


def model_config(state: Mapping[str, np.ndarray], activation: str) -> dict[str, Any]:
    """config.json for these weights."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    context_length, text_width = state["positional_embedding"].shape
    vocabulary = len(state["token_embedding.weight"])
    embed_dim = state["visual.proj"].shape[1]
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vision = _tower(state, "visual.transformer.resblocks.", width, activation, embed_dim)
    text = _tower(state, "transformer.resblocks.", text_width, activation, embed_dim)
    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed_dim,
        "torch_dtype": "float32",
        "vision_config": vision | {"model_type": "clip_vision_model", "patch_size": patch, "image_size": side * patch},
        "text_config": text
        | {"model_type": "clip_text_model", "vocab_size": vocabulary, "max_position_embeddings": context_length}
        | marks,
    }


def image_config(size: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    """preprocessor_config.json: shortest edge, bicubic, centre crop."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
    }


def write_folder(model: str, weights: Path, folder: Path) -> Path:
    """The folder with weights, configs and tokenizer; made once."""
    import open_clip
    import torch
    from safetensors.numpy import save_file

    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    loaded = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name: tensor.numpy() for name, tensor in loaded.items()}
    save_file(renamed(state), folder / "model.safetensors", metadata={"format": "pt"})
    quick = (open_clip.get_model_config(model) or {}).get("quick_gelu", False)
    config = model_config(state, "quick_gelu" if quick else "gelu")
    size = config["vision_config"]["image_size"]
    images = image_config(size, list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD))
    _write_json(folder / "preprocessor_config.json", images)
    _write_tokenizer(folder, config["text_config"]["max_position_embeddings"])
    _write_json(folder / "config.json", config)
    return folder


def _of_block(name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """One tensor of a transformer block; queries, keys and values are three there."""
    for prefix, tower in _TOWERS.items():
        if not name.startswith(prefix):
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        block = f"{tower}.encoder.layers.{number}"
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = rest.rpartition("_")[2]
            parts = zip("qkv", np.split(tensor, 3), strict=True)
            return {f"{block}.self_attn.{letter}_proj.{kind}": np.ascontiguousarray(part) for letter, part in parts}
        module, _, kind = rest.rpartition(".")
        if module in _BLOCK:
            return {f"{block}.{_BLOCK[module]}.{kind}": tensor}
    raise ValueError(f"{name}: no tensor of a plain ViT CLIP")


def _tower(state: Mapping[str, np.ndarray], prefix: str, width: int, activation: str, embed_dim: int) -> dict[str, Any]:
    blocks = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return {
        "hidden_size": width,
        "intermediate_size": len(state[f"{prefix}0.mlp.c_fc.bias"]),
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // HEAD_WIDTH,
        "hidden_act": activation,
        "projection_dim": embed_dim,
    }


def _write_tokenizer(folder: Path, context_length: int) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    ours = {"<start_of_text>": start, "<end_of_text>": end}
    _write_json(folder / "vocab.json", {ours.get(token, token): number for token, number in tokenizer.encoder.items()})
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    marks = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    _write_json(folder / "special_tokens_map.json", marks)
    named = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length}
    _write_json(folder / "tokenizer_config.json", marks | named)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
