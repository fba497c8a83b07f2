"""Embeddings that exist already → embedding store. Their images are not needed and not looked for.

    python -m training.ingest --recipe nsfw-vit-l-14 --head nsfw --data embeddings/
    python -m training.ingest --recipe nsfw-vit-l-14 --data clip-retrieval/ --label-column nsfw --dtype float16

--data is a folder with positive.npy and negative.npy, with x.npy and y.npy, or with clip-retrieval's img_emb/
and metadata/. The recipe's encoder must be the one that made them; width, length and values of every row are
checked before the first is written. A row's path is `<file>.npy#<row>`, its sha256 that of its values.
Running it again adds only what is new. Prints the store's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

from common.manifest import read_encoder
from common.paths import encoder_folder
from recipes.errors import run_step
from recipes.schema import load_recipe
from training.errors import INTERRUPTED
from training.progress import say, tracked
from training.store import Row, Store, store_folder
from training.stored_embeddings import Source, check_rows, sources_in

ROWS_PER_PART = 16_384


def ingest_sources(sources: list[Source], store: Store, rows_per_part: int = ROWS_PER_PART) -> tuple[int, int]:
    """Add a row for each embedding that the store does not hold; (added, unchanged) rows."""
    added = unchanged = 0
    blocks = [(source, start) for source in sources for start in range(0, len(source), rows_per_part)]
    for source, start in tracked(blocks, "taking in", len(blocks), "blocks"):
        rows = _rows(source, start, min(start + rows_per_part, len(source)), store.dtype)
        new = [row for row in rows if not store.holds(row.path, row.sha256, row.label)]
        store.append(new)
        added, unchanged = added + len(new), unchanged + len(rows) - len(new)
    return added, unchanged


def _rows(source: Source, start: int, stop: int, dtype: np.dtype) -> list[Row]:
    """Rows start to stop; the sum is of the values as the store keeps them, so that equal rows have equal sums."""
    block = np.ascontiguousarray(source.embedding[start:stop], dtype.newbyteorder("<"))
    return [
        Row(
            key=source.key[row],
            path=f"{source.file.resolve()}#{row}",
            sha256=hashlib.sha256(embedding.tobytes()).hexdigest(),
            width=0,
            height=0,
            label=source.label[row],
            split=None,
            embedding=embedding,
        )
        for row, embedding in enumerate(block, start=start)
    ]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="the head whose labels the rows have; needed if there are several")
    parser.add_argument("--data", type=Path, required=True, help="folder of the embeddings")
    parser.add_argument("--label-column", default="label", help="of clip-retrieval's metadata; default: label")
    parser.add_argument("--no-labels", action="store_true", help="take clip-retrieval's rows in without labels")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<recipe>")
    parser.add_argument("--dtype", choices=["float32", "float16"], help="of a new store; default: float32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    label_name = None if arguments.no_labels else arguments.label_column
    sources = list(sources_in(arguments.data, recipe.head(arguments.head), label_name))
    for source in sources:
        check_rows(source, encoder)
    folder = arguments.store or store_folder(recipe)
    added, unchanged = ingest_sources(sources, Store(folder, encoder, arguments.dtype))
    say(f"{added} rows added, {unchanged} unchanged")
    print(folder)


if __name__ == "__main__":
    sys.exit(run_step("training.ingest", main, INTERRUPTED))
