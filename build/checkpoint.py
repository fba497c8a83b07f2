"""Finds what is wrong with a checkpoint that a library could not load into a model, for the message about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from build.weights import first_line

_SHOWN = 3
_MISSING = re.compile(r"^\s*Missing key\(s\) in state_dict: (.*)$", re.MULTILINE)
_UNEXPECTED = re.compile(r"^\s*Unexpected key\(s\) in state_dict: (.*)$", re.MULTILINE)
_SHAPES = re.compile(
    r"^\s*size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, "
    r"the shape in current model is torch\.Size\((.*?)\)\.",
    re.MULTILINE,
)
_KEYS_OF = {  # part of a key → whose layout it is
    "vision_model.encoder.layers.": "Hugging Face transformers'; take the file of the same weights for {library}",
    "blocks.0.attn.qkv.": "timm's; take library: timm, and its model of that name",
    "resblocks.0.attn.in_proj_weight": "open_clip's; take library: open_clip, and its model of that name",
}
_HOME = {"timm": "timm's", "open_clip": "open_clip's", "transformers": "Hugging Face transformers'"}


def misfit(
    path: Path, model_name: str, library: str, error: Exception, make_model: Callable[[], torch.nn.Module]
) -> str:
    """The whole message: the file, what differs, and what to do.

    Args:
        path: the checkpoint.
        model_name: of the recipe.
        library: of the recipe, which tried to load it.
        error: of the library; where it is torch's, it has the keys as the library had translated them.
        make_model: a model with random weights, whose keys are compared.
    """
    head = f"encoder.weights {path}: not a checkpoint of {model_name}"
    content = _content(path)
    if content is None:
        return f"{head}: {first_line(error)}"
    levels = _levels(content)
    if not levels:
        return f"{head}: the file has no tensors, but a {type(content).__name__} of {_sample(content)}"
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in make_model().state_dict().items()}
    except Exception:  # the model cannot be made at all: that is what the library's error says
        return f"{head}: {first_line(error)}"
    differences = _of_torch(str(error), len(shapes)) or _compared(levels, shapes) or [first_line(error)]
    return "\n  ".join([f"{head}:", *differences, _advice(levels, shapes, model_name, library)])


def _content(path: Path) -> Any:
    """Load what the file holds; None if it cannot be read without running code of it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file or an archive of TorchScript: the library's own error says it
        return None


def _levels(content: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Name → tensors of the file itself (`""`) and of the dictionaries in it that have some."""
    if not isinstance(content, Mapping):
        return {}
    candidates = {"": content} | {str(key): part for key, part in content.items() if isinstance(part, Mapping)}
    tensors = {
        name: {str(key): value for key, value in part.items() if isinstance(value, torch.Tensor)}
        for name, part in candidates.items()
    }
    return {name: part for name, part in tensors.items() if part}


def _of_torch(text: str, count: int) -> list[str]:
    """The differences in the message of torch's load_state_dict; empty where it is another message."""
    lines = []
    if match := _MISSING.search(text):
        lines.append(_keys_line(re.findall(r'"([^"]+)"', match[1]), "missing keys", f" of the model's {count}"))
    if match := _UNEXPECTED.search(text):
        lines.append(_keys_line(re.findall(r'"([^"]+)"', match[1]), "unexpected keys"))
    mismatches = [f"{name} {file} in the file, {model} in the model" for name, file, model in _SHAPES.findall(text)]
    if mismatches:
        lines.append(_keys_line(mismatches, "other shapes", separator="; "))
    return lines


def _compared(levels: dict[str, dict[str, torch.Tensor]], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The differences between the file's largest level and the model, key by key."""
    tensors = max(levels.values(), key=len)
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    other = [
        f"{name} {list(tensors[name].shape)} in the file, {list(shape)} in the model"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    return [
        *([_keys_line(missing, "missing keys", f" of the model's {len(shapes)}")] if missing else []),
        *([_keys_line(unexpected, "unexpected keys")] if unexpected else []),
        *([_keys_line(other, "other shapes", separator="; ")] if other else []),
    ]


def _advice(
    levels: dict[str, dict[str, torch.Tensor]], shapes: dict[str, tuple[int, ...]], model_name: str, library: str
) -> str:
    level, prefix, fits = _best_place(levels, shapes)
    if (level or prefix) and fits >= len(shapes) / 2:
        place = [f"in its part {level!r}"] * bool(level) + [f"without the prefix {prefix!r}"] * bool(prefix)
        return f"{fits} keys fit {' and '.join(place)}; save the file anew with them: {_remedy(level, prefix)}"
    for part, layout in _KEYS_OF.items():
        if _HOME[library] not in layout and any(part in name for tensors in levels.values() for name in tensors):
            return f"its keys are {layout.format(library=library)}"
    if library == "open_clip" and all(name.startswith("visual.") for name in levels.get("", {})):
        return (
            "the file has the image tower alone, open_clip loads it with the text tower; take the whole checkpoint, or "
            "library: timm, whose vit_…_clip_… models take it"
        )
    size = " and encoder.image_size" if library == "timm" else " or encoder.open_clip_config"
    return f"is {model_name} the model that the file is of? Look at encoder.model (width, depth, patch size){size}"


def _best_place(levels: dict[str, dict[str, torch.Tensor]], shapes: dict[str, tuple[int, ...]]) -> tuple[str, str, int]:
    """(level, prefix, keys): where most of the model's keys are found, with their shapes."""
    places: Counter[tuple[str, str]] = Counter()
    for level, tensors in levels.items():
        for name, tensor in tensors.items():
            parts = name.split(".")
            for depth in range(min(len(parts), 4)):
                if shapes.get(".".join(parts[depth:])) == tuple(tensor.shape):
                    places[level, "".join(f"{part}." for part in parts[:depth])] += 1
    if not places:
        return "", "", 0
    (level, prefix), fits = places.most_common(1)[0]
    return level, prefix, fits


def _remedy(level: str, prefix: str) -> str:
    part = f"torch.load(FILE)[{level!r}]" if level else "torch.load(FILE)"
    if prefix:
        part = f"{{k.removeprefix({prefix!r}): v for k, v in {part}.items() if k.startswith({prefix!r})}}"
    return f"torch.save({part}, NEW_FILE)"


def _keys_line(names: list[str], what: str, of: str = "", separator: str = ", ") -> str:
    return f"{what} ({len(names)}{of}): {_sample(names, separator)}"


def _sample(names: Any, separator: str = ", ") -> str:
    names = list(names)
    more = ", …" if len(names) > _SHOWN else ""
    return separator.join(map(str, names[:_SHOWN])) + more
