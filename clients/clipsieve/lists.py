"""Lists of images: one column of a CSV, Parquet or JSON lines file, read as it is needed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from clipsieve._exceptions import ClipsieveError
from clipsieve.paths import path_from_text

LIST_SUFFIXES = (".csv", ".parquet", ".jsonl")

_USUAL_COLUMNS = ("image_path", "path", "file", "filename", "file_name")
_BATCH_ROWS = 1024


class InputRefused(ClipsieveError, ValueError):
    """What was named cannot be read as a list of images; nothing that comes after it is lost silently."""


def is_list(path: str) -> bool:
    return path.lower().endswith(LIST_SUFFIXES)


def paths_from_table(path: str, column: str | None = None) -> Iterator[str]:
    """The paths in a list, in its order; relative ones are relative to the current folder.

    A path is read as `clipsieve score` writes it, so its tables are lists too.

    Args:
        column: by default the first of image_path, path, file, filename or file_name, or the only one.

    Raises:
        InputRefused: the list cannot be read, has no such column, or a row has no path.
    """
    readers = {".csv": _csv_values, ".parquet": _parquet_values, ".jsonl": _json_lines_values}
    read = readers[path[path.rindex(".") :].lower()]
    try:
        for number, value in enumerate(read(path, column), start=1):
            if not isinstance(value, str) or not value or "\0" in value:
                raise InputRefused(f"{path}: row {number} has no path but {value!r}")
            yield path_from_text(value)
    except (OSError, csv.Error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputRefused):
            raise
        raise InputRefused(f"{path} cannot be read: {error}") from None


def _csv_values(path: str, column: str | None) -> Iterator[Any]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        place = _place(path, next(rows, []), column)
        for row in rows:
            if row:
                yield row[place] if place < len(row) else None


def _parquet_values(path: str, column: str | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            name = names[_place(path, names, column)]
            for batch in table.iter_batches(_BATCH_ROWS, columns=[name]):
                yield from batch.column(0).to_pylist()
    except pa.ArrowException as error:
        raise InputRefused(f"{path} cannot be read: {error}") from None


def _json_lines_values(path: str, column: str | None) -> Iterator[Any]:
    with open(path, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield _value(path, json.loads(line), column)


def _value(path: str, row: Any, column: str | None) -> Any:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise InputRefused(f"{path}: found {row!r:.60} where an object or a path should be")
    names = list(row)
    return row[names[_place(path, names, column)]]


def _place(path: str, names: Iterable[str], column: str | None) -> int:
    """Where the column is."""
    names = list(names)
    wanted = _USUAL_COLUMNS if column is None else (column,)
    for name in wanted:
        if name in names:
            return names.index(name)
    if column is None and len(names) == 1:
        return 0
    problem = f"no column {column!r}" if column is not None else "none of the columns is known to hold paths"
    raise InputRefused(f"{path}: {problem}; name one with --column: {', '.join(names) or '(it is empty)'}")
