"""Embeddings that exist already → embedding store. Their images are not needed and not looked for.

    python -m training.ingest --recipe nsfw-vit-l-14 --head nsfw --data embeddings/
    python -m training.ingest --recipe nsfw-vit-l-14 --data clip-retrieval/ --label-column nsfw --dtype float16

--data is a folder with positive.npy and negative.npy, with x.npy and y.npy, or with clip-retrieval's img_emb/
and metadata/. The recipe's encoder must be the one that made them; width, length and values of every row are
checked before the first is written. A row's path is `<file>.npy#<row>`, its sha256 that of its values.
The store follows the data: running it again embeds nothing twice, and rows that are gone or replaced are so in the
store, too. Prints the store's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipsieve.paths import text_from_path
from common.manifest import read_encoder
from common.paths import encoder_folder
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from training.errors import INTERRUPTED
from training.overview import print_overview
from training.progress import say, tracked
from training.sources import HeadData, Mention, adopt_former_files, mentions_table, write_source
from training.sources import Source as DataSource
from training.store import Embedded, Store, adopt_former_folder, store_folder
from training.store_view import read_pictures
from training.stored_embeddings import Source, check_rows, sources_in

ROWS_PER_PART = 16_384


def ingest_sources(
    sources: list[Source], store: Store, rows_per_part: int = ROWS_PER_PART
) -> tuple[int, list[Mention]]:
    """Add each embedding that the store does not hold: how many were added, and a mention of every row."""
    added, mentions = 0, []
    blocks = [(source, start) for source in sources for start in range(0, len(source), rows_per_part)]
    for source, start in tracked(blocks, "taking in", len(blocks), "blocks"):
        new: dict[str, Embedded] = {}
        for row, embedded in _rows(source, start, min(start + rows_per_part, len(source)), store.dtype):
            if not store.holds(embedded.sha256):
                new[embedded.sha256] = embedded
            path = text_from_path(f"{source.file.resolve()}#{row}")
            mentions.append(
                Mention(
                    source.key[row],
                    path,
                    embedded.sha256,
                    source.label[row],
                    source.split[row] if source.split else None,
                    source.group[row] if source.group else None,
                )
            )
        store.append(list(new.values()))
        added += len(new)
    return added, mentions


def _rows(source: Source, start: int, stop: int, dtype: np.dtype) -> Iterator[tuple[int, Embedded]]:
    """Rows start to stop; the sum is of the values as the store keeps them, so that equal rows have equal sums."""
    block = np.ascontiguousarray(source.block(start, stop), dtype.newbyteorder("<"))
    for row, embedding in enumerate(block, start=start):
        yield row, Embedded(hashlib.sha256(embedding.tobytes()).hexdigest(), 0, 0, embedding)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="the head whose labels the rows have; needed if there are several")
    parser.add_argument("--data", type=Path, required=True, help="folder of the embeddings")
    parser.add_argument("--label-column", default="label", help="of clip-retrieval's metadata; default: label")
    parser.add_argument("--no-labels", action="store_true", help="take clip-retrieval's rows in without labels")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--dtype", choices=["float32", "float16"], help="of a new store; default: float32")
    parser.add_argument(
        "--keep-missing", action="store_true", help="go on counting rows and data sets that are no longer there"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    label_name = None if arguments.no_labels else arguments.label_column
    sources = list(sources_in(arguments.data, head, label_name))
    for source in sources:
        check_rows(source, encoder)
    folder = arguments.store or store_folder(recipe)
    check_writable(folder)
    if arguments.store is None:
        adopt_former_folder(recipe, encoder)
    store = Store(folder, encoder, arguments.dtype)
    added, mentions = ingest_sources(sources, store)
    say(f"{added} rows added, {len(mentions) - added} known before")
    data = HeadData(folder, recipe.name, head.name)
    adopt_former_files(data)
    identity = f"embeddings {text_from_path(str(arguments.data.resolve()))}"
    changes = write_source(data, DataSource(identity, mentions_table(mentions)), arguments.keep_missing)
    print_overview(data, read_pictures(data), changes)
    print(folder)


if __name__ == "__main__":
    sys.exit(run_step("training.ingest", main, INTERRUPTED))
