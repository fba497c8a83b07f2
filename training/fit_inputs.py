"""What a fit starts from: a recipe's head, and the labelled rows of the store with their groups and their split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.manifest import EncoderFingerprint, read_encoder
from common.paths import encoder_folder
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import StepError
from training.finetuned import check_held_out
from training.head_fit import plan_of
from training.labelled import Labelled, grouped_split, labelled_rows
from training.labels import check_classes_listed
from training.leakage import Groups
from training.sources import HeadData, adopt_former_files
from training.split import Split
from training.store import adopt_former_folder, store_folder
from training.store_view import Pictures, read_embeddings


@dataclass(frozen=True)
class FitInputs:
    """A head and the data that it is fitted to."""

    recipe: Recipe
    head: Head
    encoder: EncoderFingerprint
    layer_widths: list[int]
    head_data: HeadData
    pictures: Pictures
    data: Labelled
    groups: Groups
    split: Split


def read_inputs(recipe: Recipe, head: Head, store: Path | None = None) -> FitInputs:
    """Read them from the store, by default the one of the recipe's encoder.

    Raises:
        StepError: the head is not trained here, its settings do not go together, or there are no labels that fit it.
    """
    if head.source is not None:
        raise StepError(f"head {head.name} comes from {head.source}, it is not trained here; remove its source to fit")
    if head.published is not None:
        raise StepError(
            f"head {head.name} is the published {head.published.name}, it is not trained here; get it with: "
            f"python -m training.import_head --recipe {recipe.name}"
        )
    check_classes_listed(head)
    built = read_encoder(encoder_folder(recipe))
    encoder = built.fingerprint()
    plan_of(head)
    check_held_out(built, head)
    if store is None:
        adopt_former_folder(recipe, encoder)
    head_data = HeadData(store or store_folder(recipe), recipe.name, head.name)
    adopt_former_files(head_data)
    embeddings = read_embeddings(head_data, encoder)
    data = labelled_rows(embeddings, head.class_names, head.task)
    groups, split = grouped_split(data, embeddings.pictures, head, head_data.folder)
    return FitInputs(recipe, head, encoder, built.layer_widths, head_data, embeddings.pictures, data, groups, split)
