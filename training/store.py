"""The embedding store: a folder of Parquet files with one row per content (sha256), all made by one encoder.

    part-00000-1f0c9a3e.parquet           sha256, width, height, embedding
    part-00001-….parquet
    labels/<recipe>/<head>/…              what data sets say of the contents: training.sources

Parts are only ever added, each written whole, so that a killed run leaves a store that reads well and a second run
goes on where the first stopped. Each carries the encoder's fingerprint in its schema's metadata; rows of two encoders
never meet in one store. Every recipe with that encoder uses it, and no content is embedded twice.

Embeddings are float32 or float16, the same in all parts. A row without an image has width and height 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from clipsieve.arrow_paths import read_schema
from common import paths
from common.manifest import EncoderFingerprint
from recipes.schema import Recipe
from training.errors import StepError
from training.parquet_files import read_columns, readable, write_table
from training.progress import say

Dtype = Literal["float32", "float16"]

_FINGERPRINT_KEY = b"clipsieve.encoder"
_TYPES: dict[Dtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass(frozen=True)
class Embedded:
    """One content and its embedding."""

    sha256: str
    width: int
    height: int
    embedding: np.ndarray
    """(embed_dim,) float; the store keeps it in its own dtype."""


class Store:
    """A store on disk, open for looking contents up and for adding them.

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
        self._place_of: dict[bytes, tuple[int, int]] = {}  # content → (part, row)
        self._files: list[Path] = []
        for part in part_files(folder):
            check_part(part, encoder)
            self._index(part, read_columns(part, ["sha256"])["sha256"].to_pylist())
        self._read_matrix = functools.lru_cache(maxsize=4)(read_matrix)

    def holds(self, sha256: str) -> bool:
        """Return True if this content has been embedded, wherever its files lie."""
        return _packed(sha256) in self._place_of

    def embedding_of(self, sha256: str) -> np.ndarray:
        """(embed_dim,) float32."""
        part, row = self._place_of[_packed(sha256)]
        return self._read_matrix(self._files[part])[row].astype(np.float32)

    def append(self, rows: list[Embedded]) -> None:
        """Add the rows as one new part: all of them, or, when the process dies, none."""
        if not rows:
            return
        number = int(self._files[-1].name.split("-")[1]) + 1 if self._files else 0
        part = write_table(self.folder, f"part-{number:05d}", _table(rows, self._schema))
        self._index(part, [row.sha256 for row in rows])

    def _index(self, part: Path, contents: list[str]) -> None:
        """Remember where each content lies; sums are kept as 32 bytes."""
        number = len(self._files)
        for row, sha256 in enumerate(contents):
            self._place_of[_packed(sha256)] = (number, row)
        self._files.append(part)


def store_folder(recipe: Recipe) -> Path:
    """Folder of the embeddings of a recipe's encoder, unless --store names another."""
    return paths.ARTIFACTS / "embeddings" / paths.encoder_folder(recipe).name


def adopt_former_folder(recipe: Recipe, encoder: EncoderFingerprint) -> None:
    """Take over what the recipe's store holds, from before embeddings belonged to an encoder."""
    former, folder = paths.ARTIFACTS / "embeddings" / recipe.name, store_folder(recipe)
    parts = part_files(former) if former != folder else []
    if not parts or any(
        fingerprint_of(part).model_dump(exclude={"id"}) != encoder.model_dump(exclude={"id"}) for part in parts
    ):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*parts, *former.glob("_*.parquet")]:
        file.rename(folder / file.name)
    say(f"{former}: its embeddings are in {folder} now, for every recipe with this encoder")


def part_files(folder: Path) -> list[Path]:
    """The parts of a store in the order they were written; half-written ones are not among them."""
    return sorted(folder.glob("part-*.parquet"))


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


def fingerprint_of(part: Path) -> EncoderFingerprint:
    """The encoder that made the embeddings of one part.

    Raises:
        StepError: it is no part of a store.
    """
    metadata = readable(part, lambda: read_schema(part)).metadata or {}
    if _FINGERPRINT_KEY not in metadata:
        raise StepError(f"{part}: not a part of an embedding store (no encoder in its metadata); move it elsewhere")
    return EncoderFingerprint.model_validate_json(metadata[_FINGERPRINT_KEY])


def read_matrix(part: Path) -> np.ndarray:
    """(n, embed_dim) float32 or float16: the embeddings of one part, a view of Arrow's buffer."""
    column = read_columns(part, ["embedding"])["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


def check_part(part: Path, encoder: EncoderFingerprint) -> None:
    """
    Raises:
        StepError: the part is another encoder's, or its columns are not a store's; columns beside them may be there.
    """
    _compare_encoders(part.parent, fingerprint_of(part), encoder)
    schema = readable(part, lambda: read_schema(part))
    types = {field.name: _type_name(field.type) for field in schema}
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


def _schema(encoder: EncoderFingerprint, dtype: Dtype = "float32") -> pa.Schema:
    fields = [
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("embedding", pa.list_(_TYPES[dtype], encoder.embed_dim), nullable=False),
    ]
    return pa.schema(fields, metadata={_FINGERPRINT_KEY: encoder.model_dump_json().encode()})


def _agreed_dtype(folder: Path, requested: Dtype | None) -> Dtype:
    """The store's dtype if it has rows, else the requested one."""
    parts = part_files(folder)
    if not parts:
        return requested or "float32"
    schema = readable(parts[0], lambda: read_schema(parts[0]))
    half = "embedding" in schema.names and "halffloat" in str(schema.field("embedding").type)
    stored: Dtype = "float16" if half else "float32"
    if requested not in (None, stored):
        raise StepError(f"{folder}: its embeddings are {stored}, not {requested}; leave --dtype out or change --store")
    return stored


def _table(rows: list[Embedded], schema: pa.Schema) -> pa.Table:
    kind = schema.field("embedding").type
    flat = np.concatenate([row.embedding for row in rows]).astype(kind.value_type.to_pandas_dtype(), copy=False)
    names = [name for name in schema.names if name != "embedding"]
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in names]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def _packed(sha256: str) -> bytes:
    """A sum in half its length; anything else as it is."""
    return bytes.fromhex(sha256) if len(sha256) == 64 else sha256.encode()


def _type_name(data_type: pa.DataType) -> str:
    """The type without the name of a list's items, which Parquet changes."""
    if isinstance(data_type, pa.FixedSizeListType):
        return f"fixed_size_list<{data_type.value_type}>[{data_type.list_size}]"
    return str(data_type)


def _compare_encoders(folder: Path, made_by: EncoderFingerprint, current: EncoderFingerprint) -> None:
    stored, expected = made_by.model_dump(), current.model_dump()
    differing = [
        f"{name}: the store has {stored[name]!r}, the encoder is {expected[name]!r}"
        for name in stored
        if name != "id" and stored[name] != expected[name]
    ]
    if differing:
        raise StepError(
            f"{folder}: made by encoder {made_by.id}, which is not this encoder {current.id}:\n  "
            + "\n  ".join(differing)
            + "\nEmbed into another folder with --store, or delete this one."
        )
