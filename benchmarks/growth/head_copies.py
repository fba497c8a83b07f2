"""A recipe's first head under other names, as many times as wanted: heads that cost what a real one does."""

from __future__ import annotations

import shutil
from pathlib import Path

from build.head import build_head
from common.manifest import head_weights, read_head, write_manifest
from common.paths import head_folder
from recipes.head_section import Head
from recipes.schema import Recipe

MOST_CHARACTERS = 40
"""Kept of the head's name, so that a number fits behind it."""


def with_head_copies(recipe: Recipe, count: int, folder: Path) -> Recipe:
    """The recipe with `count` copies of its first head and no other; those missing in `folder` are built there.

    Raises:
        ManifestError: the head is not built, or its files do not belong together.
    """
    copies = [_copied(recipe, number, folder) for number in range(1, count + 1)]
    return recipe.model_copy(update={"name": f"{recipe.name}-{count}-heads", "heads": copies})


def _copied(recipe: Recipe, number: int, folder: Path) -> Head:
    head = recipe.heads[0]
    name = f"{head.name[:MOST_CHARACTERS]}_{number}"
    if not (folder / name / "model.onnx").is_file():
        _build_copy(head_folder(recipe, head), folder / name, name, recipe.build.opset)
    return head.model_copy(update={"name": name, "source": folder / name, "shadow": None})


def _build_copy(source: Path, target: Path, name: str, opset: int) -> None:
    """The graph is built anew: its revision is of the name, too."""
    manifest = read_head(source)
    weights = head_weights(manifest, source)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(weights, target / weights.name)
    write_manifest(manifest.model_copy(update={"name": name}), target / "head.json")
    build_head(target, opset)
