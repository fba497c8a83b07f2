"""Recipes of small CLIP models with both towers and random weights, whose heads are made of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_TOWER = {"width": 64, "layers": 1}
_VISION = _TOWER | {"image_size": 32, "patch_size": 8, "head_width": 32}
_TEXT = _TOWER | {"context_length": 16, "vocab_size": 49408, "heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 32, "init_logit_scale": 4.6052, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "sigmoid": {  # as SigLIP's: trained with a sigmoid, and so with a bias
        "embed_dim": 32,
        "init_logit_bias": -16.5,
        "init_logit_scale": 4.7,
        "custom_text": True,
        "vision_cfg": _VISION,
        "text_cfg": _TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
}
MULTICLASS = {"name": "policy", "task": "multiclass", "class_names": ["map", "chat", "receipt"]} | {
    "prompts": {"map": ["a map", "a street map"], "chat": ["a screenshot of a chat"], "receipt": "a receipt"}
}
BINARY = {"name": "weapons", "class_names": ["other", "weapon"]} | {
    "prompts": {"other": ["people", "a tool"], "weapon": ["a person holding a weapon"]}
}
MULTILABEL = {"name": "tags", "task": "multilabel", "class_names": ["cat", "outdoors"]} | {
    "prompts": {"cat": ["a cat"], "outdoors": ["a landscape", "a street"]},
    "negatives": {"outdoors": ["a room"]},
}


def words_recipe(kind: str, *heads: dict[str, Any], **encoder: Any) -> dict[str, Any]:
    """A recipe as its YAML would say it."""
    return {
        "name": f"words-{kind}",
        "description": "A test.",
        "encoder": {"model": f"words-test-{kind}", "open_clip_config": CONFIGS[kind], "seed": 3} | encoder,
        "heads": list(heads),
    }


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """Write the YAML; returns its path."""
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
