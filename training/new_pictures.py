"""Embeds single pictures that a person labelled, and keeps what was said of them in a data set of their own.

The data set is `marks <folder of the head's labels>`, so that it is there as long as the store: labels given by hand
stay, whatever becomes of the files.
"""

from __future__ import annotations

from clipsieve.paths import text_from_path
from common.paths import encoder_folder
from common.pixels import served_transform
from common.writing import check_writable
from recipes.schema import Recipe
from training.embed import append_errors, embed_samples
from training.encoder import OnnxEncoder
from training.progress import say
from training.sample import Sample
from training.sources import HeadData, add_mentions
from training.store import Store


def add_pictures(samples: list[Sample], recipe: Recipe, data: HeadData) -> int:
    """Embed the pictures and add them, with their labels, to the head's data; returns how many contents are new to it.

    Files that cannot be embedded are listed in <store>.errors.csv and the others are added.

    Raises:
        StepError: the recipe's encoder is not the file that its manifest describes, or the store is another's.
    """
    encoder = OnnxEncoder(encoder_folder(recipe))
    check_writable(data.store)
    store = Store(data.store, encoder.manifest.fingerprint())
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    summary = embed_samples(samples, store, encoder, transform, recipe.serving.max_batch_size)
    identity = f"marks {text_from_path(str(data.folder.resolve()))}"
    errors = data.store.with_name(f"{data.store.name}.errors.csv")
    append_errors(errors, summary.failures, identity, data)
    if summary.failures:
        first = summary.failures[0]
        reason = f"the first: {first.path}: {first.code}: {first.message}"
        say(f"{len(summary.failures)} new pictures cannot be embedded, {reason}; all of them: {errors}")
    if not summary.mentions:
        return 0
    add_mentions(data, identity, summary.mentions)
    added = len({mention.sha256 for mention in summary.mentions})
    say(f"{added} new pictures have their label now, {summary.embedded} of them embedded")
    return added
