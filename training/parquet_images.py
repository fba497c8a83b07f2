"""Pictures inside Parquet files, as the Hugging Face hub keeps them: a column `image` of {bytes, path}, or of bytes.

images_in(file)           the rows without the bytes, each with the place of its picture
read_image(file, place)   the bytes of one
class_names_in(file, …)   the names behind a column of class indexes, where the file says them
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipsieve.arrow_paths import arrow_source, read_schema
from training.errors import StepError

_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
_lock = threading.Lock()


@dataclass(frozen=True)
class Place:
    """The place of a picture in a Parquet file."""

    column: str
    """The column with the bytes: `image.bytes`, or `image` of a column that holds nothing else."""
    group: int
    row: int
    """Row within the row group."""
    number: int
    """Row within the file, from 1."""


@dataclass(frozen=True)
class EmbeddedImages:
    """The rows of a Parquet file with pictures inside."""

    name: str
    """Column of the pictures."""
    names: list[str]
    rows: list[dict[str, Any]]
    """Without the bytes; the picture's column holds its path, or None."""
    places: list[Place | None]
    """None where the row has a path and no bytes."""


def images_in(file: Path, column: str | None = None) -> EmbeddedImages | None:
    """The rows of a Parquet file that holds pictures; None where no column does.

    Args:
        file: a .parquet file.
        column: of the pictures; by default the first known name, or the first that holds {bytes, path}.

    Raises:
        StepError: it cannot be read.
    """
    try:
        with pq.ParquetFile(arrow_source(file)) as parquet:
            name = _image_column(parquet.schema_arrow, column)
            return None if name is None else _read(parquet, name)
    except (OSError, pa.ArrowException) as error:
        raise StepError(f"{file}: not a readable parquet table: {error}") from error


def read_image(file: Path, place: Place) -> bytes:
    """The encoded picture at a place. The last two row groups are kept in memory, so reading on is fast.

    Raises:
        OSError: there is none, or the file cannot be read.
    """
    with _lock:
        value = _group(file, place.column, place.group)[place.row].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise OSError(None, f"row {place.number} holds no picture")
    return data


def class_names_in(file: Path, column: str) -> list[str] | None:
    """The names that the indexes of a column stand for, as Hugging Face's datasets write them beside the schema."""
    try:
        metadata = read_schema(file).metadata or {}
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


@lru_cache(maxsize=2)
def _group(file: Path, column: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(arrow_source(file)) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(0)


def _image_column(schema: pa.Schema, column: str | None) -> str | None:
    names = [field.name for field in schema if _holds_images(field.type)]
    if column is not None:
        return column if column in names else None
    structs = [name for name in names if pa.types.is_struct(schema.field(name).type)]
    return next((name for name in _IMAGE_NAMES if name in names), structs[0] if structs else None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read(parquet: pq.ParquetFile, name: str) -> EmbeddedImages:
    field = parquet.schema_arrow.field(name)
    is_struct = pa.types.is_struct(field.type)
    bytes_column = f"{name}.bytes" if is_struct else name
    has_path = is_struct and field.type.get_field_index("path") >= 0
    others = [other for other in parquet.schema_arrow.names if other != name]
    columns = [*others, *([f"{name}.path"] if has_path else [])]
    rows: list[dict[str, Any]] = []
    places: list[Place | None] = []
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        read = parquet.read_row_group(group, columns=columns).to_pylist() if columns else [{} for _ in range(count)]
        only_paths = has_path and _is_empty(parquet, bytes_column, group)
        for row, cells in enumerate(read):
            rows.append({**cells, name: (cells.get(name) or {}).get("path") if has_path else None})
            places.append(None if only_paths else Place(bytes_column, group, row, len(rows)))
    return EmbeddedImages(name, [*others, name], rows, places)


def _is_empty(parquet: pq.ParquetFile, column: str, group: int) -> bool:
    """True when the file says that no row of the group has bytes."""
    about = parquet.metadata.row_group(group)
    for number in range(about.num_columns):
        chunk = about.column(number)
        if chunk.path_in_schema == column and chunk.is_stats_set and chunk.statistics.has_null_count:
            return chunk.statistics.null_count == about.num_rows
    return False
