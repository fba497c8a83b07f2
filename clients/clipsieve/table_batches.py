"""Reads a table by rows, or in batches of rows by column: Parquet, CSV, JSON lines or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipsieve.exceptions import TableError

SUFFIXES = (".parquet", ".csv", ".jsonl", ".json")

_BATCH_ROWS = 8192

Batch = dict[str, list[Any]]
"""Some rows, by column."""
NumberedRow = tuple[int, dict[str, Any]]


def column_names(file: Path) -> list[str]:
    """
    Raises:
        TableError: no such file, it is damaged, or no table of a known kind.
    """
    kind = _kind(file)
    with _readable(file):
        return (
            _parquet_names(file) if kind == ".parquet" else _csv_names(file) if kind == ".csv" else _object_names(file)
        )


def batches(file: Path, names: list[str]) -> Iterator[Batch]:
    """All rows, with these columns.

    Raises:
        TableError: the file is damaged.
    """
    if _kind(file) != ".parquet":
        yield from _row_batches(numbered_rows(file), names)
        return
    with _readable(file):
        yield from _parquet_batches(file, names)


def numbered_rows(file: Path, mapping: tuple[str, str] | None = None) -> Iterator[NumberedRow]:
    """All rows, each with the number by which a person finds it: in a CSV the header is row 1, of JSON lines the line.

    Args:
        mapping: names of the two columns that a JSON object stands for, such as `path` and `label` for
            `{"a.jpg": 1}`; without them such a file is refused.

    Raises:
        TableError: as for `column_names`, once the rows before were given.
    """
    kind = _kind(file)
    with _readable(file):
        if kind == ".csv":
            yield from _csv_rows(file)
        elif kind == ".parquet":
            yield from _parquet_rows(file)
        else:
            yield from _object_rows(file, mapping)


def json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line that is not empty, which need not be an object, with its number.

    Raises:
        TableError: as for `column_names`.
    """
    with _readable(file):
        yield from _lines(file)


def _kind(file: Path) -> str:
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise TableError(f"{file}: not a table that can be read; known: {', '.join(SUFFIXES)}")
    return kind


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise TableError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
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


def _csv_rows(file: Path) -> Iterator[NumberedRow]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        names = next(reader, [])
        for number, fields in enumerate(reader, start=2):
            if not fields:
                continue  # an empty line
            if len(fields) != len(names):
                place = f"row {number} (line {reader.line_num})"
                raise TableError(f"{file}: {place} does not have the header's {len(names)} fields")
            yield number, dict(zip(names, fields, strict=True))


def _parquet_rows(file: Path) -> Iterator[NumberedRow]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _object_rows(file: Path, mapping: tuple[str, str] | None = None) -> Iterator[NumberedRow]:
    for number, row in _lines(file) if file.suffix.lower() == ".jsonl" else _items(file, mapping):
        if not isinstance(row, dict):
            raise TableError(f"{file}: row {number} is {row!r:.60}, expected an object")
        yield number, row


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines, one at a time."""
    with file.open(
        encoding="utf-8-sig", newline="\n"
    ) as lines:  # JSON may hold U+2028 and others that end a text's line
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parsed(file, line, f" row {number}")


def _items(file: Path, mapping: tuple[str, str] | None) -> Iterator[tuple[int, Any]]:
    """The values of an array, which is read whole."""
    data = _parsed(file, file.read_text(encoding="utf-8-sig"), "")
    if mapping and isinstance(data, dict) and not any(isinstance(value, dict) for value in data.values()):
        data = [dict(zip(mapping, pair, strict=True)) for pair in data.items()]
    if not isinstance(data, list):
        other = f", or an object of {': '.join(mapping)}" if mapping else ""
        raise TableError(f"{file}: expected an array of objects{other}")
    return enumerate(data, start=1)


def _object_names(file: Path) -> list[str]:
    return list({name: None for _, row in _object_rows(file) for name in row})


def _row_batches(rows: Iterator[NumberedRow], names: list[str]) -> Iterator[Batch]:
    batch: Batch = {name: [] for name in names}
    for _, row in rows:
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
