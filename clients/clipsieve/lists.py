"""Lists of images: one column of a CSV, Parquet or JSON lines file, read as it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipsieve.exceptions import InputRefused
from clipsieve.paths import path_from_text
from clipsieve.table_batches import batches, column_names, json_lines, numbered_rows

LIST_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
PATH_COLUMNS = ("image_path", "path", "file", "filename", "file_name")


def is_list(path: str) -> bool:
    return path.lower().endswith(LIST_SUFFIXES)


def path_column(names: Sequence[str], column: str | None = None) -> str | None:
    """The column that holds the paths; None when there is none.

    Args:
        column: its name; by default the first of PATH_COLUMNS, or the only one. Without one of exactly this name, one
            that differs only in case and in spaces around it.
    """
    for name in PATH_COLUMNS if column is None else (column,):
        if name in names:
            return name
    for name in PATH_COLUMNS if column is None else (column,):
        if (same := column_like(names, name)) is not None:
            return same
    return names[0] if column is None and len(names) == 1 else None


def column_like(names: Sequence[str], column: str) -> str | None:
    """The one column of this name, whatever its case and the spaces around it; None where there is none, or several."""
    same = [name for name in names if name.strip().casefold() == column.strip().casefold()]
    return column if column in names else same[0] if len(same) == 1 else None


def path_from_cell(value: Any) -> str:
    """The path that a cell names, as `clipsieve score` writes it.

    Raises:
        ValueError: it names none.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r:.60} is no path")
    return path_from_text(value)


def paths_from_table(path: str, column: str | None = None) -> Iterator[str]:
    """The paths in a list, in its order; relative ones are relative to the current folder.

    A path is read as `clipsieve score` writes it, so its tables are lists too.

    Args:
        column: as for `path_column`.

    Raises:
        InputRefused: the list cannot be read, has no such column, or a row has no path.
    """
    for number, value in _values(Path(path), column):
        try:
            yield path_from_cell(value)
        except ValueError:
            raise InputRefused(f"{path}: row {number} has no path but {value!r:.60}") from None


def _values(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """Values of the column, with the number of each row."""
    kind = file.suffix.lower()
    if kind == ".jsonl":
        yield from ((number, _value(file, row, column)) for number, row in json_lines(file))
        return
    name = _column(file, column_names(file), column)
    if kind in (".csv", ".tsv"):
        yield from ((number, row[name]) for number, row in numbered_rows(file))
    else:
        yield from enumerate((value for batch in batches(file, [name]) for value in batch[name]), start=1)


def _value(file: Path, row: Any, column: str | None) -> Any:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise InputRefused(f"{file}: found {row!r:.60} where an object or a path should be")
    return row[_column(file, list(row), column)]


def _column(file: Path, names: list[str], column: str | None) -> str:
    name = path_column(names, column)
    if name is None:
        problem = f"no column {column!r}" if column is not None else "none of the columns is known to hold paths"
        raise InputRefused(f"{file}: {problem}; name one with --column: {', '.join(names) or '(it is empty)'}")
    return name
