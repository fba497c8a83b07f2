"""The head that a recipe names, read and held against what the recipe says of it."""

from __future__ import annotations

from pathlib import Path

from common import paths
from common.manifest import EncoderManifest, HeadManifest, ManifestError, compare_fingerprints, read_head
from recipes.head_section import Head
from recipes.prompts import negatives_of, texts_of
from recipes.schema import Recipe


def read_recipe_head(recipe: Recipe, head: Head, encoder: EncoderManifest) -> HeadManifest:
    """head.json of a recipe's head.

    Raises:
        ManifestError: there is none, or it was made for another encoder, task, class_names or recipe; the message
            says both values. A head that the recipe takes from a `source` may be another recipe's.
    """
    folder = paths.head_folder(recipe, head)
    if not (folder / "head.json").is_file():
        _point_to_former_folder(folder)
    manifest = read_head(folder)
    compare_fingerprints(manifest, encoder)
    for key, made, expected in (
        ("task", manifest.task, head.task),
        ("class_names", manifest.class_names, head.class_names or manifest.class_names),  # none: a classifier's own
    ):
        if made != expected:
            raise ManifestError(
                f"{folder}: head {head.name!r} was made for {key} {made}, the recipe {recipe.name} says {expected}; "
                f"train it again: python -m training.fit --recipe {recipe.name}"
            )
    if head.prompts and not is_of_words(manifest, head):
        raise ManifestError(
            f"{folder}: head {head.name!r} was not made of the texts that the recipe {recipe.name} has now; "
            f"make it again: make engines RECIPE={recipe.name}, or python -m build.texts and training.text_head"
        )
    if head.source is None and manifest.made_by not in (None, recipe.name):
        raise ManifestError(
            f"{folder}: head {head.name!r} was made by recipe {manifest.made_by}, not by {recipe.name}; "
            "train it again, or name that folder as the head's source in the recipe"
        )
    return manifest


def is_of_words(manifest: HeadManifest, head: Head) -> bool:
    """True if the head was made of the recipe's texts, be it that it was trained on from there."""
    words = manifest.training.words
    return words is not None and (words.texts, words.negatives) == (texts_of(head), negatives_of(head))


def _point_to_former_folder(folder: Path) -> None:
    """Heads used to lie by their names alone, shared by all recipes: whose such a head is, only its user knows."""
    former = paths.ARTIFACTS / "heads" / folder.name
    if (former / "head.json").is_file():
        raise ManifestError(
            f"{folder}: not found. {former} is from before heads belonged to a recipe; "
            f"if it is this recipe's, move it: mkdir -p {folder.parent} && mv {former} {folder}"
        )
