"""Rows of the result table, and the files they are written to: CSV, JSON, JSON lines or Parquet.

Rows are written as they come; only Parquet keeps some thousands in memory at a time. In CSV a missing
value is an empty cell and a path is written as it is, so that reading it back gives the same path: a
spreadsheet may take one that starts with `=`, `+`, `-` or `@` for a formula.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from clipsieve.client import Embedding, Head, Score
from clipsieve.paths import text_from_path

_PARQUET_ROWS = 8192


@dataclass(frozen=True)
class Row:
    """One line of the table; the field names are the columns."""

    image_path: str
    """Escaped by `paths.text_from_path`."""
    probability: float | None = None
    prediction: int | None = None
    class_name: str | None = None
    error: str | None = None
    model_version: str | None = None


COLUMNS = tuple(field.name for field in fields(Row))


def row_from_score(score: Score, head: Head, threshold: float | None) -> Row:
    """The row of a head with one label.

    Args:
        threshold: predict 1 at or above it; None leaves it to the head's first threshold.
    """
    path = text_from_path(score.path or "")
    if score.error is not None:
        return Row(path, error=str(score.error))
    probability = float(str(score.scores[0]))  # the shortest digits that are this float32: 0.1, not 0.10000000149
    prediction = int(score.decisions[0] >= 1) if threshold is None else int(probability >= threshold)
    class_name = head.class_names[prediction] if prediction < len(head.class_names) else None
    return Row(path, probability, prediction, class_name, model_version=score.model_version)


class OutputRefused(ValueError):
    """The output file cannot be written as asked."""


def check_output(path: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Refuse what would only fail after the work.

    Raises:
        OutputRefused: unknown suffix, missing or read-only folder, or a file that is already there.
    """
    if path.suffix.lower() not in suffixes:
        raise OutputRefused(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise OutputRefused(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputRefused(f"{path}: the folder {path.parent} cannot be written to")
    if path.is_dir():
        raise OutputRefused(f"{path} is a folder")
    if path.exists() and not overwrite:
        raise OutputRefused(f"{path} already exists; give --overwrite to replace it")


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

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class CsvWriter:
    """RFC 4180 quoting, UTF-8, `\\n` line ends, a header line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write_cells(COLUMNS)

    def write(self, row: Row) -> None:
        values = (getattr(row, name) for name in COLUMNS)
        self._write_cells("" if value is None else str(value) for value in values)

    def close(self) -> None:
        pass

    def _write_cells(self, cells: Iterable[str]) -> None:
        self._file.write((",".join(map(_csv_cell, cells)) + "\n").encode())


class JsonLinesWriter:
    """One object a line, UTF-8, null for a missing value."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(_json_object(row) + b"\n")

    def close(self) -> None:
        pass


class JsonWriter:
    """An array of objects, one a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._before = b"[\n"

    def write(self, row: Row) -> None:
        self._file.write(self._before + _json_object(row))
        self._before = b",\n"

    def close(self) -> None:
        self._file.write(b"\n]\n" if self._before == b",\n" else b"[]\n")


class ParquetWriter:
    """Strings, float32 and int32, null for a missing value."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa

        types = {"probability": pa.float32(), "prediction": pa.int32()}
        self._table = _ParquetTable(file, pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS]))

    def write(self, row: Row) -> None:
        self._table.append([getattr(row, name) for name in COLUMNS])

    def close(self) -> None:
        self._table.close()


ROW_WRITERS: dict[str, Callable[[BinaryIO], RowWriter]] = {
    ".csv": CsvWriter,
    ".json": JsonWriter,
    ".jsonl": JsonLinesWriter,
    ".parquet": ParquetWriter,
}


class EmbeddingWriter(Protocol):
    def write(self, embedding: Embedding) -> None: ...

    def close(self) -> None: ...


class NpyEmbeddingWriter:
    """A NumPy file (N, D) float32 in the order of the inputs; an image without embedding is a row of NaN."""

    def __init__(self, file: BinaryIO, count: int, dim: int) -> None:
        self._file = file
        self._left = count
        self._missing = np.full(dim, np.nan, dtype="<f4").tobytes()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})

    def write(self, embedding: Embedding) -> None:
        self._file.write(embedding.vector.astype("<f4").tobytes() if embedding.ok else self._missing)
        self._left -= 1

    def close(self) -> None:
        for _ in range(self._left):
            self._file.write(self._missing)


class ParquetEmbeddingWriter:
    """Columns image_path, embedding (a list of D float32, or null) and error."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa

        # Not a fixed-size list: one with nulls did not survive a round trip with pyarrow 25.
        columns = [("image_path", pa.string()), ("embedding", pa.list_(pa.float32())), ("error", pa.string())]
        self._table = _ParquetTable(file, pa.schema(columns))

    def write(self, embedding: Embedding) -> None:
        vector = embedding.vector if embedding.ok else None
        error = str(embedding.error) if embedding.error else None
        self._table.append([text_from_path(embedding.path or ""), vector, error])

    def close(self) -> None:
        self._table.close()


EMBEDDING_SUFFIXES = (".npy", ".parquet")


def embedding_writer(suffix: str, file: BinaryIO, count: int, dim: int) -> EmbeddingWriter:
    if suffix == ".npy":
        return NpyEmbeddingWriter(file, count, dim)
    return ParquetEmbeddingWriter(file)


class _ParquetTable:
    """Appends rows to a Parquet file, some thousands at a time."""

    def __init__(self, file: BinaryIO, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._schema = schema
        self._parquet = pq.ParquetWriter(file, schema)
        self._rows: list[list[Any]] = []

    def append(self, row: list[Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _PARQUET_ROWS:
            self._write_rows()

    def close(self) -> None:
        if self._rows:
            self._write_rows()
        self._parquet.close()

    def _write_rows(self) -> None:
        import pyarrow as pa

        columns = zip(self._schema, zip(*self._rows, strict=True), strict=True)
        arrays = [pa.array(list(values), type=field.type) for field, values in columns]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()


def _csv_cell(text: str) -> str:
    # Not the csv module: before Python 3.13 it leaves a lone \r unquoted.
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json_object(row: Row) -> bytes:
    return json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode()
