"""Result tables as files: CSV, JSON, JSON lines or Parquet, and embeddings as NumPy or Parquet.

Everything is written from Arrow tables of some thousand rows, so a table of any length needs little memory. In
CSV a missing value is an empty cell, and a path that a spreadsheet would take for a formula, because it starts
with `=`, `+`, `-`, `@` or a tab, is written with `./` before it: the same file by another name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from clipsieve.exceptions import OutputRefused
from clipsieve.joined import check_replaceable
from clipsieve.scoring import Row, shortest

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP, _ROW_GROUP_BYTES = 8192, 8 << 20
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_PATH_COLUMN = "image_path"


def check_place(path: Path, suffixes: Iterable[str]) -> None:
    """Refuse what would only fail after the work.

    Raises:
        OutputRefused: unknown suffix, or a missing or read-only folder.
    """
    if path.suffix.lower() not in suffixes:
        raise OutputRefused(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise OutputRefused(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputRefused(f"{path}: the folder {path.parent} cannot be written to")
    if path.is_dir():
        raise OutputRefused(f"{path} is a folder")


def check_output(path: Path, suffixes: Iterable[str], overwrite: bool) -> None:
    """`check_place`, for an output that is written in one go.

    Raises:
        OutputRefused: also when the file is already there.
    """
    check_place(path, suffixes)
    if path.exists() and not overwrite:
        raise OutputRefused(f"{path} already exists; give --overwrite to replace it")
    check_replaceable(path)


@contextmanager
def replacing(path: Path, tell_partial: Callable[[Path], None]) -> Iterator[BinaryIO]:
    """A file written under another name beside `path`, which gets its own name at the end.

    If the work fails what was written stays under the other name, and `tell_partial` is called with it.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        if partial.exists():
            tell_partial(partial)
        raise


class RowWriter(Protocol):
    """Writes rows to a binary file, which stays open; `close` writes what belongs at the end."""

    def write(self, rows: Iterable[Row]) -> None: ...

    def close(self) -> None: ...


class CsvWriter:
    """RFC 4180 quoting, UTF-8, `\\n` line ends, a header line."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._path = names.index(_PATH_COLUMN) if _PATH_COLUMN in names else -1
        self._write_cells(names)

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            cells = ["" if value is None else str(value) for value in row]
            if self._path >= 0 and cells[self._path].startswith(_FORMULA_STARTS):
                cells[self._path] = f"./{cells[self._path]}"
            self._write_cells(cells)

    def close(self) -> None:
        pass

    def _write_cells(self, cells: Iterable[str]) -> None:
        self._file.write((",".join(map(_csv_cell, cells)) + "\n").encode())


class JsonLinesWriter:
    """One object a line, UTF-8, null for a missing value."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._names = names

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._file.write(_json_object(self._names, row) + b"\n")

    def close(self) -> None:
        pass


class JsonWriter:
    """An array of objects, one a line."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._names = names
        self._before = b"[\n"

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._file.write(self._before + _json_object(self._names, row))
            self._before = b",\n"

    def close(self) -> None:
        self._file.write(b"\n]\n" if self._before == b",\n" else b"[]\n")


ROW_WRITERS: dict[str, Callable[[BinaryIO, Sequence[str]], RowWriter]] = {
    ".csv": CsvWriter,
    ".json": JsonWriter,
    ".jsonl": JsonLinesWriter,
}
TABLE_SUFFIXES = (*ROW_WRITERS, ".parquet")
EMBEDDING_SUFFIXES = (".npy", ".parquet")


def table_from_rows(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [pa.array(list(values), type=field.type) for field, values in zip(schema, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def rows_from_table(table: pa.Table) -> Iterator[Row]:
    import pyarrow as pa

    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        values = column.to_pylist()
        if field.type == pa.float32():
            values = [None if value is None else shortest(value) for value in values]
        columns.append(values)
    return zip(*columns, strict=True)


def write_table(file: BinaryIO, suffix: str, tables: Iterable[pa.Table], schema: pa.Schema, count: int) -> None:
    """Write tables of one schema, one after the other, as one file.

    Args:
        suffix: of TABLE_SUFFIXES or EMBEDDING_SUFFIXES.
        count: rows of all the tables; a NumPy file begins with it.
    """
    if suffix == ".parquet":
        _write_parquet(file, tables, schema)
    elif suffix == ".npy":
        _write_npy(file, tables, count)
    else:
        writer = ROW_WRITERS[suffix](file, schema.names)
        for table in tables:
            writer.write(rows_from_table(table))
        writer.close()


def _write_parquet(file: BinaryIO, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema) as writer:
        for group in _grouped(tables):
            writer.write_table(group.cast(schema) if group.schema != schema else group)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Some thousand rows together, however small the parts they were committed in."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROW_GROUP or sum(each.nbytes for each in waiting) >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write_npy(file: BinaryIO, tables: Iterable[pa.Table], count: int) -> None:
    """(N, D) float32 in the order of the inputs; an image without embedding is a row of NaN."""
    parts = (_vectors(table) for table in tables)
    before: list[list[Any]] = []  # parts before the first embedding, whose length is not known yet
    dim = 0
    for part in parts:
        before.append(part)
        dim = next((len(vector) for vector in part if vector is not None), 0)
        if dim:
            break
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
    np.lib.format.write_array_header_1_0(file, header)
    missing = np.full(dim, np.nan, dtype="<f4")
    for part in chain(before, parts):
        for vector in part:
            file.write((missing if vector is None else vector).tobytes())


def _vectors(table: pa.Table) -> list[Any]:
    """Vectors of the rows, each (D,) float32, or None."""
    return [None if not each.is_valid else each.values.to_numpy().astype("<f4") for each in table["embedding"]]


def _csv_cell(text: str) -> str:
    # Not the csv module: before Python 3.13 it leaves a lone \r unquoted.
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json_object(names: Sequence[str], row: Row) -> bytes:
    return json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False).encode()
