"""Parquet files of the embedding store: written whole or not at all, read with errors that name the file."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipsieve.arrow_paths import arrow_source
from common.manifest import write_atomically
from training.errors import StepError

_Read = TypeVar("_Read")


def write_table(folder: Path, stem: str, table: pa.Table) -> Path:
    """Write `<stem>-<random>.parquet`; the random end keeps two runs at once from overwriting each other's file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    path = folder / f"{stem}-{secrets.token_hex(4)}.parquet"
    write_atomically(path, buffer.getvalue().to_pybytes())
    return path


def append_table(folder: Path, name: str, table: pa.Table) -> Path:
    """Write the next of the numbered tables of a name: `split-00000-….parquet`, `split-00001-….parquet`."""
    return write_table(folder, f"{name}-{len(_numbered(folder, name)):05d}", table)


def read_tables(folder: Path, name: str, columns: list[str]) -> list[pa.Table]:
    """The tables that `append_table` added under this name, in that order."""
    return [read_columns(file, columns) for file in _numbered(folder, name)]


def read_columns(file: Path, columns: list[str]) -> pa.Table:
    """
    Raises:
        StepError: the file cannot be read, or lacks a column.
    """
    return readable(file, lambda: pq.ParquetFile(arrow_source(file)).read(columns=columns))


def readable(file: Path, read: Callable[[], _Read]) -> _Read:
    """Return what `read` gives.

    Raises:
        StepError: it fails because the file is missing, cut off or no Parquet.
    """
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{file}: not a readable Parquet file ({error}); delete it and embed again") from error


def index_in(values: pa.Array, among: pa.Array) -> pa.Array:
    """(n,) int32 place of each value among the others, null where it is not."""
    return pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=among))


def codes_of(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(different values, (n,) index of each row's value, -1 for null)."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary, np.asarray(encoded.indices.fill_null(-1))


def _numbered(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-[0-9]*.parquet"))
