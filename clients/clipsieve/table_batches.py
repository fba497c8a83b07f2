"""Reads a table in batches of rows, by column: Parquet, CSV, JSON lines or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipsieve.lists import InputRefused

SUFFIXES = (".parquet", ".csv", ".jsonl", ".json")

_BATCH_ROWS = 8192

Batch = dict[str, list[Any]]
"""Some rows, by column."""


class TableError(InputRefused):
    """A table cannot be read or lacks what is needed; the message names the file and says what."""


def column_names(file: Path) -> list[str]:
    """
    Raises:
        TableError: no such file, it is damaged, or no table of a known kind.
    """
    readers: dict[str, Callable[[Path], list[str]]] = {
        ".parquet": _parquet_names,
        ".csv": _csv_names,
        ".jsonl": _object_names,
        ".json": _object_names,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise TableError(f"{file}: not a table that can be read; known: {', '.join(SUFFIXES)}")
    with _readable(file):
        return reader(file)


def batches(file: Path, names: list[str]) -> Iterator[Batch]:
    """All rows, with these columns.

    Raises:
        TableError: the file is damaged.
    """
    kind = file.suffix.lower()
    with _readable(file):
        if kind == ".parquet":
            yield from _parquet_batches(file, names)
        else:
            yield from _object_batches(_csv_rows(file) if kind == ".csv" else _json_rows(file), names)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise TableError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise TableError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, csv.Error, RecursionError) as error:
        raise TableError(f"{file}: not a readable {file.suffix.lower()[1:]} table: {error}") from error


def _parquet_names(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        return parquet.schema_arrow.names


def _parquet_batches(file: Path, names: list[str]) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            yield batch.to_pydict()


def _csv_names(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        return next(csv.reader(text, strict=True), [])


def _csv_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise TableError(
                    f"{file}: row {number} does not have the header's {len(reader.fieldnames or [])} fields"
                )
            yield row


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, one at a time, or of an array, which is read whole."""
    if file.suffix.lower() == ".json":
        rows = _parsed(file, file.read_text(encoding="utf-8"), "")
        if not isinstance(rows, list):
            raise TableError(f"{file}: expected an array of objects")
        yield from (_checked(file, row, number) for number, row in enumerate(rows, start=1))
        return
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _checked(file, _parsed(file, line, f" row {number}"), number)


def _object_names(file: Path) -> list[str]:
    return list({name: None for row in _json_rows(file) for name in row})


def _object_batches(rows: Iterator[dict[str, Any]], names: list[str]) -> Iterator[Batch]:
    batch: Batch = {name: [] for name in names}
    for row in rows:
        for name in names:
            batch[name].append(row.get(name))
        if len(batch[names[0]]) >= _BATCH_ROWS:
            yield batch
            batch = {name: [] for name in names}
    yield batch


def _parsed(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TableError(f"{file}:{where} not valid JSON: {error}") from error


def _checked(file: Path, row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise TableError(f"{file}: row {number} is {row!r:.60}, expected an object")
    return row
