"""Embedding stores as `training.embed` leaves them, from rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.manifest import EncoderFingerprint
from recipes.schema import load_recipe
from training.sources import Changes, HeadData, Mention, Source, mentions_table, write_source
from training.store import Dtype, Embedded, Store, store_folder
from training.store_view import Embeddings, read_embeddings


@dataclass(frozen=True)
class Row:
    """One file of a data set, and its embedding."""

    key: str
    path: str
    sha256: str
    width: int
    height: int
    label: str | None
    split: str | None
    embedding: np.ndarray
    group: str | None = None


def head_data(folder: Path) -> HeadData:
    """The demo's head in a store."""
    return HeadData(folder, "demo", "demo")


def write_rows(
    folder: Path,
    encoder: EncoderFingerprint,
    rows: Sequence[Row],
    *,
    identity: str = "folders /",
    dtype: Dtype | None = None,
    keep_missing: bool = False,
) -> Changes:
    """Embed a data set: its new contents, and what it says for the demo's head.

    Args:
        folder: of the store.
        encoder: of the embeddings.
        rows: every file of the data set.
        identity: of the data set; the root folder, which is always there, by default.
        dtype: of a new store.
        keep_missing: as training.embed has it.
    """
    store = Store(folder, encoder, dtype)
    new = {row.sha256: row for row in rows if not store.holds(row.sha256)}
    store.append([Embedded(row.sha256, row.width, row.height, row.embedding) for row in new.values()])
    mentions = mentions_table(Mention(row.key, row.path, row.sha256, row.label, row.split, row.group) for row in rows)
    return write_source(head_data(folder), Source(identity, mentions), keep_missing)


class DemoStore:
    """A store whose one data set, for the demo's head, grows."""

    def __init__(self, folder: Path, encoder: EncoderFingerprint, dtype: Dtype | None = None) -> None:
        self.folder, self.encoder = folder, encoder
        self.dtype: Dtype | None = dtype
        self.data = head_data(folder)

    def append(self, rows: Sequence[Row]) -> None:
        """Add files, or say other things of those that have their paths."""
        if rows:
            write_rows(self.folder, self.encoder, rows, dtype=self.dtype, keep_missing=True)

    def read(self) -> Embeddings:
        """The head's pictures, as a step reads them."""
        return read_embeddings(self.data, self.encoder)


def demo_store(encoder: EncoderFingerprint) -> DemoStore:
    """The store where the steps look for the demo's."""
    return DemoStore(store_folder(load_recipe("demo")), encoder)
