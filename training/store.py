"""The embedding store: a folder of Parquet files, one row per image, made by one encoder.

    part-00000-1f0c9a3e.parquet           key, path, sha256, width, height, label, split, embedding
    part-00001-….parquet
    _labels-00000-….parquet               corrections: sha256, was, label     (training.relabel)
    _split-41d2c09b-00000-….parquet       sides that were drawn: sha256, split (training.split)

Files are only ever added, each written whole, so that a killed run leaves a store that reads well and a
second run goes on where the first stopped. Each part carries the encoder's fingerprint in its schema's
metadata; rows of two encoders never meet in one store.

`path` is the image file, or `<file>#<key or row>` for what lies inside a file. Embeddings are float32 or
float16, the same in all parts. A row without an image has width and height 0. What the rows say together is
`training.store_view`'s.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common import paths
from common.manifest import EncoderFingerprint, write_atomically
from recipes.schema import Recipe
from training.errors import StepError

Dtype = Literal["float32", "float16"]

_FINGERPRINT_KEY = b"clipsieve.encoder"
_TYPES: dict[Dtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
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
    """(embed_dim,) float; the store keeps it in its own dtype."""


@dataclass(frozen=True)
class Batch:
    """Some rows of one part, as they were written."""

    columns: dict[str, pa.Array]
    embedding: np.ndarray  # (b, embed_dim) float32 or float16, a read-only view of Arrow's buffer


class Store:
    """A store on disk, open for reading and for adding rows.

    Args:
        folder: made with the first rows if it does not exist.
        encoder: the encoder whose embeddings are to be added.
        dtype: of the embeddings; by default what the store has, float32 for a new one.

    Raises:
        StepError: the store is another encoder's or of another dtype, or a part cannot be read.
    """

    def __init__(self, folder: Path, encoder: EncoderFingerprint, dtype: Dtype | None = None) -> None:
        self.folder = folder
        agreed = _agreed_dtype(folder, dtype)
        self.dtype = np.dtype(agreed)
        """Of the embeddings on disk."""
        self._schema = _schema(encoder, agreed)
        self._held: dict[bytes, tuple[bytes, str | None]] = {}  # path → (content, label)
        self._known: dict[bytes, tuple[str | None, int, int]] = {}  # content → (label, part, row)
        self._files: list[Path] = []
        for part in part_files(folder):
            check_part(part, encoder)
            self._index(part, read_part(part, ["path", "sha256", "label"]))
        self._read_matrix = functools.lru_cache(maxsize=4)(read_matrix)

    def holds(self, path: str, sha256: str, label: str | None) -> bool:
        """Whether the row is there already, and nothing written later contradicts it; corrections do not count."""
        content = _packed(sha256)
        return self._held.get(path.encode()) == (content, label) and self._known[content][0] == label

    def knows(self, sha256: str) -> bool:
        """Whether this content has been embedded, under whatever path."""
        return _packed(sha256) in self._known

    def embedding_of(self, sha256: str) -> np.ndarray:
        """(embed_dim,) float32."""
        _, part, row = self._known[_packed(sha256)]
        return self._read_matrix(self._files[part])[row].astype(np.float32)

    def append(self, rows: list[Row]) -> None:
        """Add the rows as one new part: all of them, or, when the process dies, none."""
        if not rows:
            return
        table = _table(rows, self._schema)
        number = int(self._files[-1].name.split("-")[1]) + 1 if self._files else 0
        part = _write_table(self.folder, f"part-{number:05d}", table)
        self._index(part, table)

    def _index(self, part: Path, table: pa.Table) -> None:
        """Remember what a part holds, in about 400 bytes a row: sums as 32 bytes, each label once."""
        labels: dict[str | None, str | None] = {}
        columns = (table[name].to_pylist() for name in ("path", "sha256", "label"))
        for row, (path, sha256, label) in enumerate(zip(*columns, strict=True)):
            content, label = _packed(sha256), labels.setdefault(label, label)
            self._held[path.encode()] = (content, label)
            self._known[content] = (label, len(self._files), row)
        self._files.append(part)


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


def scan_embeddings(folder: Path, columns: Sequence[str] = ("key",), batch_rows: int = 8192) -> Iterator[Batch]:
    """Every row ever written, in order, a batch at a time: memory holds one part at most.

    Nothing is resolved here: a path that was embedded twice comes twice, and corrections are not applied.

    Args:
        folder: of the store.
        columns: to be read beside the embedding.
        batch_rows: at most so many rows a batch.

    Raises:
        StepError: the store is missing or empty, or a part cannot be read.
    """
    for part in written_parts(folder):
        file = _readable(part, lambda part=part: pq.ParquetFile(part))
        batches = file.iter_batches(batch_rows, columns=[*columns, "embedding"])
        while (batch := _readable(part, lambda batches=batches: next(batches, None))) is not None:
            yield Batch({name: batch[name] for name in columns}, _matrix(batch["embedding"]))


def append_beside(folder: Path, name: str, table: pa.Table) -> Path:
    """Add a table that says something about the rows; readers of the parts skip names that begin with `_`."""
    return _write_table(folder, f"_{name}-{len(_files_beside(folder, name)):05d}", table)


def read_beside(folder: Path, name: str, columns: list[str]) -> list[pa.Table]:
    """The tables that `append_beside` added under this name, in that order."""
    return [read_part(file, columns) for file in _files_beside(folder, name)]


def index_in(values: pa.Array, among: pa.Array) -> pa.Array:
    """(n,) int32 place of each value among the others, null where it is not."""
    return pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=among))


def written_parts(folder: Path) -> list[Path]:
    """`part_files` of a store that must have some.

    Raises:
        StepError: it is missing or empty.
    """
    parts = part_files(folder)
    if not parts:
        state = "has no rows" if folder.is_dir() else "no such embedding store"
        raise StepError(f"{folder}: {state}; make it with: python -m training.embed --recipe RECIPE --data FOLDER")
    return parts


def read_part(part: Path, columns: list[str]) -> pa.Table:
    """Some columns of one file of a store.

    Raises:
        StepError: it cannot be read.
    """
    return _readable(part, lambda: pq.ParquetFile(part).read(columns=columns))


def read_matrix(part: Path) -> np.ndarray:
    """(n, embed_dim) float32 or float16: the embeddings of one part."""
    return _matrix(read_part(part, ["embedding"])["embedding"].combine_chunks())


def check_part(part: Path, encoder: EncoderFingerprint) -> None:
    """Refuse a part of another encoder, or one whose columns are not a store's."""
    _compare_encoders(part.parent, fingerprint_of(part), encoder)
    found = _readable(part, lambda: pq.read_schema(part))
    types = {field.name: _type_name(field.type) for field in found}
    fitting = [{field.name: _type_name(field.type) for field in _schema(encoder, dtype)} for dtype in _TYPES]
    wrong = [
        f"{name}: {types.get(name, 'missing')}, expected {expected}"
        for name, expected in fitting[0].items()
        if types.get(name) not in {schema[name] for schema in fitting}
    ]
    if wrong:
        raise StepError(
            f"{part}: not a part of an embedding store; delete it and embed again:\n  " + "\n  ".join(wrong)
        )


def _files_beside(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"_{name}-*.parquet"))


def _write_table(folder: Path, stem: str, table: pa.Table) -> Path:
    """Whole or not at all; the random end keeps two runs at once from overwriting each other's file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    path = folder / f"{stem}-{secrets.token_hex(4)}.parquet"
    write_atomically(path, buffer.getvalue().to_pybytes())
    return path


def _schema(encoder: EncoderFingerprint, dtype: Dtype = "float32") -> pa.Schema:
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("embedding", pa.list_(_TYPES[dtype], encoder.embed_dim), nullable=False),
    ]
    return pa.schema(fields, metadata={_FINGERPRINT_KEY: encoder.model_dump_json().encode()})


def _agreed_dtype(folder: Path, wanted: Dtype | None) -> Dtype:
    """The store's dtype if it has rows, else the wanted one."""
    parts = part_files(folder)
    if not parts:
        return wanted or "float32"
    schema = _readable(parts[0], lambda: pq.read_schema(parts[0]))
    half = "embedding" in schema.names and "halffloat" in str(schema.field("embedding").type)
    found: Dtype = "float16" if half else "float32"
    if wanted not in (None, found):
        raise StepError(f"{folder}: its embeddings are {found}, not {wanted}; leave --dtype out or change --store")
    return found


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    kind = schema.field("embedding").type
    flat = np.concatenate([row.embedding for row in rows]).astype(kind.value_type.to_pandas_dtype(), copy=False)
    names = [name for name in schema.names if name != "embedding"]
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in names]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def _packed(sha256: str) -> bytes:
    """A sum in half its length; anything else as it is."""
    return bytes.fromhex(sha256) if len(sha256) == 64 else sha256.encode()


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """(n, embed_dim) float32 or float16, a view of the column's buffer."""
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


def _readable(part: Path, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{part}: not a readable Parquet file ({error}); delete it and embed again") from error


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
