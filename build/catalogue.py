"""Lists the models of open_clip and timm that can be an encoder, with the cost of those that match a pattern.

    python -m build.encoder --list                         # names, tags and image sizes
    python -m build.encoder --list 'vit_base_patch16_clip*'

Parameters and GFLOP per image (a multiply and an add are two) are counted on torch's meta device, where
tensors have shapes and no values: nothing is downloaded and no weights are made.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import open_clip
import timm
import torch
from open_clip.model import _build_vision_tower
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from build.timm_tower import is_projection

COLUMNS = ("library", "model", "embed_dim", "image_size", "parameters", "gflop_per_image", "pretrained")


@dataclass(frozen=True)
class Row:
    """A model of a library; a field that only its weights would tell is None."""

    library: str
    model: str
    image_size: int | None
    pretrained: list[str]
    make: Callable[[], torch.nn.Module]
    """Builds the image tower, to be called on the meta device."""


@dataclass(frozen=True)
class Cost:
    embed_dim: int
    parameters: int
    gflop_per_image: float


def print_catalogue(pattern: str) -> int:
    """Print the models that match, tab-separated, one a line; the exit status is 1 when none does."""
    rows = [row for row in _rows() if fnmatch.fnmatch(row.model.lower(), pattern.lower() or "*")]
    if not rows:
        print(f"build.encoder: no model matches {pattern!r}; try '*{pattern}*'", file=sys.stderr)
        return 1
    if not pattern:
        print("give a pattern such as 'ViT-B*' for embed_dim, parameters and GFLOP", file=sys.stderr)
    print(*COLUMNS, sep="\t")
    shown = rows
    if pattern and len(rows) > 1:
        shown = track(rows, description="counting", console=Console(stderr=True), transient=True)
    for row in shown:
        cost = measure(row) if pattern else None
        figures = (cost.embed_dim, cost.parameters, f"{cost.gflop_per_image:.2f}") if cost else ("-", "-", "-")
        print(row.library, row.model, figures[0], row.image_size or "-", *figures[1:], sep="\t", end="\t")
        print(",".join(row.pretrained) or "-")
    return 0


def measure(row: Row) -> Cost | None:
    """The model's cost; None when it cannot be built or run without values, so that a list goes on without it."""
    logging.disable(logging.WARNING)
    try:
        with torch.device("meta"):
            tower = row.make().eval()
            size = row.image_size or 224
            with FlopCounterMode(display=False) as flops:
                embedding = tower(torch.zeros(1, 3, size, size))
    except Exception:  # any of two thousand architectures may want a value of a tensor
        return None
    finally:
        logging.disable(logging.NOTSET)
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    embedding = embedding[0] if isinstance(embedding, tuple) else embedding
    return Cost(embedding.shape[-1], parameters, flops.get_total_flops() / 1e9)


def _rows() -> Iterator[Row]:
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        size = config["vision_cfg"].get("image_size", 224)
        tags = open_clip.list_pretrained_tags_by_model(name)
        yield Row("open_clip", name, size if isinstance(size, int) else None, tags, _open_clip_maker(config))
    tags_of_model = _timm_tags()
    for name in timm.list_models():
        config = timm.models.get_pretrained_cfg(name)
        size = config.input_size[-1] if config is not None else None
        yield Row("timm", name, size, tags_of_model.get(name, []), _timm_maker(name))


def _timm_tags() -> dict[str, list[str]]:
    tags_of_model: dict[str, list[str]] = {}
    for full_name in timm.list_pretrained():
        model, _, tag = full_name.partition(".")
        tags_of_model.setdefault(model, []).append(tag)
    return tags_of_model


def _open_clip_maker(config: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        vision = json.loads(json.dumps(config["vision_cfg"])) | {"timm_model_pretrained": False}
        return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))

    return make


def _timm_maker(name: str) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        model = timm.create_model(name, exportable=True)
        if not is_projection(cast(dict[str, Any], model.pretrained_cfg)):
            cast(Any, model).reset_classifier(0)
        return model

    return make
