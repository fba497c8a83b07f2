"""The embedding store: a folder of Parquet files, one row per image, made by one encoder.

    part-00000-1f0c9a3e.parquet     key, path, sha256, width, height, label, split, embedding
    part-00001-….parquet

Parts are only ever added, each written whole, so that a killed run leaves a store that reads well and a
second run goes on where the first stopped. Each part carries the encoder's fingerprint in its schema's
metadata; rows of two encoders never meet in one store.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes import paths
from recipes.manifest import EncoderFingerprint, write_atomically
from recipes.schema import Recipe
from training.errors import StepError

_FINGERPRINT_KEY = b"clipsieve.encoder"
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Row:
    """One image of the store."""

    key: str
    path: str
    sha256: str
    width: int
    height: int
    label: str | None
    split: str | None
    embedding: np.ndarray
    """(embed_dim,) float32."""


@dataclass(frozen=True)
class Embeddings:
    """The rows of a store as columns of equal length, sorted by content so that their order means nothing."""

    embedding: np.ndarray  # (n, embed_dim) float32
    key: list[str]
    path: list[str]
    sha256: list[str]
    label: list[str | None]

    def __len__(self) -> int:
        return len(self.key)


class Store:
    """A store on disk, open for reading and for adding rows.

    Args:
        folder: made with the first rows if it does not exist.
        encoder: the encoder whose embeddings are to be added.

    Raises:
        StepError: the store is another encoder's, or a part cannot be read.
    """

    def __init__(self, folder: Path, encoder: EncoderFingerprint) -> None:
        self.folder = folder
        self._schema = _schema(encoder)
        self._held: dict[str, tuple[str, str | None]] = {}  # path → (sha256, label)
        self._label_of: dict[str, str | None] = {}  # sha256 → label
        self._place_of: dict[str, tuple[Path, int]] = {}  # sha256 → (part, row)
        self._parts = 0
        for part in part_files(folder):
            _check_part(part, encoder)
            self._index(part, _read_part(part, ["path", "sha256", "label"]))
        self._read_embeddings = functools.lru_cache(maxsize=4)(_read_embeddings)

    def holds(self, path: str, sha256: str, label: str | None) -> bool:
        """Whether the row is there already, and nothing written later contradicts it."""
        return self._held.get(path) == (sha256, label) and self._label_of[sha256] == label

    def knows(self, sha256: str) -> bool:
        """Whether this content has been embedded, under whatever path."""
        return sha256 in self._place_of

    def embedding_of(self, sha256: str) -> np.ndarray:
        part, row = self._place_of[sha256]
        return self._read_embeddings(part)[row]

    def append(self, rows: list[Row]) -> None:
        """Add the rows as one new part: all of them, or, when the process dies, none."""
        if not rows:
            return
        table = _table(rows, self._schema)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        # The random end keeps two runs at once from overwriting each other's part.
        part = self.folder / f"part-{self._parts:05d}-{secrets.token_hex(4)}.parquet"
        write_atomically(part, buffer.getvalue().to_pybytes())
        self._index(part, table)

    def _index(self, part: Path, table: pa.Table) -> None:
        self._parts = int(part.name.split("-")[1]) + 1
        columns = (table[name].to_pylist() for name in ("path", "sha256", "label"))
        for row, (path, sha256, label) in enumerate(zip(*columns, strict=True)):
            self._held[path] = (sha256, label)
            self._label_of[sha256] = label
            self._place_of[sha256] = (part, row)


def store_folder(recipe: Recipe) -> Path:
    """Where a recipe's embeddings lie unless --store says otherwise."""
    return paths.ARTIFACTS / "embeddings" / recipe.name


def part_files(folder: Path) -> list[Path]:
    """The parts of a store in the order they were written; half-written ones are not among them."""
    return sorted(folder.glob("part-*.parquet"))


def fingerprint_of(part: Path) -> EncoderFingerprint:
    """The encoder that made the embeddings of one part."""
    metadata = _readable(part, lambda: pq.read_schema(part)).metadata or {}
    if _FINGERPRINT_KEY not in metadata:
        raise StepError(f"{part}: not a part of an embedding store (no encoder in its metadata); move it elsewhere")
    return EncoderFingerprint.model_validate_json(metadata[_FINGERPRINT_KEY])


def read_embeddings(folder: Path, encoder: EncoderFingerprint) -> Embeddings:
    """What the store says now: the last row of each path, and of each content its last label.

    So a file that was replaced, or moved to the folder of another class, counts as it was last embedded.

    Raises:
        StepError: the store is missing, empty, another encoder's, or a part cannot be read.
    """
    parts = part_files(folder)
    if not parts:
        state = "has no rows" if folder.is_dir() else "no such embedding store"
        raise StepError(f"{folder}: {state}; make it with: python -m training.embed --recipe RECIPE --data FOLDER")
    for part in parts:
        _check_part(part, encoder)
    table = pa.concat_tables(_read_part(part, ["key", "path", "sha256", "label", "embedding"]) for part in parts)
    return _latest(table, encoder.embed_dim)


def _latest(table: pa.Table, embed_dim: int) -> Embeddings:
    keys, paths, sums, labels = (table[name].to_pylist() for name in ("key", "path", "sha256", "label"))
    last_row = {path: row for row, path in enumerate(paths)}
    last_label = dict(zip(sums, labels, strict=True))
    rows = sorted(last_row.values(), key=lambda row: (sums[row], paths[row]))
    return Embeddings(
        embedding=_matrix(table["embedding"], embed_dim)[rows],
        key=[keys[row] for row in rows],
        path=[paths[row] for row in rows],
        sha256=[sums[row] for row in rows],
        label=[last_label[sums[row]] for row in rows],
    )


def _schema(encoder: EncoderFingerprint) -> pa.Schema:
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("embedding", pa.list_(pa.float32(), encoder.embed_dim), nullable=False),
    ]
    return pa.schema(fields, metadata={_FINGERPRINT_KEY: encoder.model_dump_json().encode()})


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    flat = np.concatenate([row.embedding for row in rows]).astype(np.float32, copy=False)
    names = [name for name in schema.names if name != "embedding"]
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in names]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=schema.field("embedding").type))
    return pa.Table.from_arrays(columns, schema=schema)


def _read_part(part: Path, columns: list[str]) -> pa.Table:
    return _readable(part, lambda: pq.ParquetFile(part).read(columns=columns))


def _read_embeddings(part: Path) -> np.ndarray:
    column = _read_part(part, ["embedding"])["embedding"]
    return _matrix(column, column.type.list_size)


def _matrix(column: pa.ChunkedArray, embed_dim: int) -> np.ndarray:
    """(n, embed_dim) float32."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, embed_dim)


def _readable(part: Path, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{part}: not a readable Parquet file ({error}); delete it and embed again") from error


def _check_part(part: Path, encoder: EncoderFingerprint) -> None:
    """Refuse a part of another encoder, or one whose columns are not a store's."""
    _compare_encoders(part.parent, fingerprint_of(part), encoder)
    found = _readable(part, lambda: pq.read_schema(part))
    types = {field.name: _type_name(field.type) for field in found}
    wrong = [
        f"{field.name}: {types.get(field.name, 'missing')}, expected {_type_name(field.type)}"
        for field in _schema(encoder)
        if types.get(field.name) != _type_name(field.type)
    ]
    if wrong:
        raise StepError(
            f"{part}: not a part of an embedding store; delete it and embed again:\n  " + "\n  ".join(wrong)
        )


def _type_name(data_type: pa.DataType) -> str:
    """Without the name of a list's items, which Parquet changes."""
    if isinstance(data_type, pa.FixedSizeListType):
        return f"fixed_size_list<{data_type.value_type}>[{data_type.list_size}]"
    return str(data_type)


def _compare_encoders(folder: Path, made_by: EncoderFingerprint, wanted: EncoderFingerprint) -> None:
    stored, current = made_by.model_dump(), wanted.model_dump()
    differing = [
        f"{name}: the store has {stored[name]!r}, the encoder is {current[name]!r}"
        for name in stored
        if name != "id" and stored[name] != current[name]
    ]
    if differing:
        raise StepError(
            f"{folder}: made by encoder {made_by.id}, which is not this encoder {wanted.id}:\n  "
            + "\n  ".join(differing)
            + "\nEmbed into another folder with --store, or delete this one."
        )
