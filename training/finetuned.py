"""The pictures that a fine-tuned encoder was trained on stay on their side of the split, wherever they come from.

Such an encoder embeds its training pictures better than any other: a head that was calibrated or measured on them
would promise too much. So the side that a picture had in the fine-tuning is prescribed, as is its group.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.finetuned import PICTURES, RECORD
from common.manifest import EncoderManifest, sha256_of
from common.paths import named_path
from recipes.encoder_section import Encoder
from recipes.head_section import Head
from training.errors import StepError
from training.parquet_files import read_columns
from training.sources import Mention
from training.store_view import SIDES


def with_finetuned_sides(
    mentions: list[Mention], encoder: Encoder, manifest: EncoderManifest
) -> tuple[list[Mention], list[str]]:
    """The mentions with the sides and groups of the encoder's fine-tuning, and notes; as they are for other encoders.

    Args:
        mentions: of pictures that are embedded.
        encoder: of the recipe.
        manifest: of its built file.

    Raises:
        StepError: the built file is of other weights than the folder holds now.
    """
    folder = _finetuned_folder(encoder)
    if folder is None:
        return mentions, []
    if manifest.source_sha256[0] != sha256_of(folder / "config.json", folder / "model.safetensors"):
        raise StepError(
            f"{folder}: holds other weights than the encoder was exported from; run python -m build.encoder again"
        )
    columns = read_columns(folder / PICTURES, ["sha256", "split", "group"])
    known = dict(
        zip(
            columns["sha256"].to_pylist(),
            zip(columns["split"].to_pylist(), columns["group"].to_pylist(), strict=True),
            strict=True,
        )
    )
    new = sum(mention.sha256 not in known and mention.split is None for mention in mentions)
    notes = [
        f"split: as in the fine-tuning of {folder.name}"
        + (f"; {new} pictures are new since then, and train" if new else "")
    ]
    return [_placed(mention, known) for mention in mentions], notes


def check_held_out(manifest: EncoderManifest, head: Head) -> None:
    """Refuse a fit on a fine-tuned encoder that would hold out what the encoder was trained on.

    Raises:
        StepError: saying what to write.
    """
    if not any(source.finetuned for source in manifest.sources):
        return
    fit = head.fit
    if fit.folds or fit.near_duplicate_cosine is not None:
        raise StepError(
            f"head {head.name}: its encoder is fine-tuned, so the pictures that it was trained on choose nothing, and "
            "all pictures of a class are near to one another in it: write fit: {folds: 0, near_duplicate_cosine: null}"
            f" (found folds {fit.folds}, near_duplicate_cosine {fit.near_duplicate_cosine})"
        )


def _finetuned_folder(encoder: Encoder) -> Path | None:
    if not isinstance(encoder.weights, Path):
        return None
    folder = named_path(encoder.weights)
    return folder if (folder / RECORD).is_file() else None


def _placed(mention: Mention, known: dict[str, tuple[str, str]]) -> Mention:
    if mention.sha256 not in known:
        return mention if mention.split is not None else replace(mention, split="train")
    side, group = known[mention.sha256]
    return replace(mention, split=side if side in SIDES else "train", group=group)
