"""Paths of the files. The artefact folders are the only interface between the steps.

artifacts/encoders/<encoder id>/model.onnx, encoder.json, verification.npz
artifacts/encoders/<encoder id>-<precision>/…   the same, made from the fp32 file
artifacts/classifiers/<recipe>/config.json, model.safetensors, finetune.json, pictures.parquet   of training.finetune
artifacts/<recipe>/finetune/                a fine-tuning that goes on, or went: its last state
artifacts/embeddings/<encoder id>/…         the embedding store, which all recipes with that encoder share
artifacts/<recipe>/heads/<head>/head.safetensors, head.json, model.onnx, report.json
artifacts/<recipe>/searches/<head>.db       the trials of training.search
artifacts/<recipe>/texts.safetensors        embeddings of the texts that its heads are made of
artifacts/<recipe>/verification.json        every step from torch to what is served, compared
artifacts/<recipe>/model_repository/        what Triton loads for any recipe but the default

$CLIPSIEVE_ARTIFACTS puts the artifacts folder elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.build_section import Precision
    from recipes.head_section import Head
    from recipes.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = Path(os.environ.get("CLIPSIEVE_ARTIFACTS", ROOT / "artifacts"))
MODEL_REPOSITORY = ROOT / "model_repository"
DEFAULT_RECIPE = "nsfw-vit-l-14"
"""The recipe that the checked-in config.pbtxt files are written for."""


def encoder_folder(recipe: Recipe, precision: Precision | None = None) -> Path:
    """Folder of an encoder at the recipe's precision, or at the one given."""
    precision = precision or recipe.build.precision
    return ARTIFACTS / "encoders" / (recipe.encoder.id + ("" if precision == "fp32" else f"-{precision}"))


def head_folder(recipe: Recipe, head: Head) -> Path:
    """Folder of a recipe's own head, or the one that `source` names."""
    if head.source is None:
        return ARTIFACTS / recipe.name / "heads" / head.name
    return head.source if head.source.is_absolute() else ROOT / head.source


def named_path(path: Path) -> Path:
    """The place that a path of a recipe means: relative to the root, and below `artifacts/` in the artifacts folder."""
    if path.parts[:1] == ("artifacts",):
        return ARTIFACTS.joinpath(*path.parts[1:])
    return ROOT / path  # an absolute path stays itself


def finetune_folder(recipe: Recipe) -> Path:
    """The state of a recipe's fine-tuning, from which it goes on."""
    return ARTIFACTS / recipe.name / "finetune"


def texts_file(recipe: Recipe) -> Path:
    """The embeddings of the texts in the recipe's `prompts`."""
    return ARTIFACTS / recipe.name / "texts.safetensors"


def search_file(recipe: Recipe, head: Head) -> Path:
    """The SQLite file of the trials that searched for a head's settings."""
    return ARTIFACTS / recipe.name / "searches" / f"{head.name}.db"


def repository_folder(recipe: Recipe) -> Path:
    """model_repository/ itself for the default recipe, a stamped copy under artifacts/ for others."""
    if recipe.name == DEFAULT_RECIPE:
        return MODEL_REPOSITORY
    return ARTIFACTS / recipe.name / "model_repository"
