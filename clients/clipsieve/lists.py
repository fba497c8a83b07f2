"""Reads lists of images as they are needed: a column of a CSV, Parquet or JSON file, or a text with a path a line.

A Parquet file may hold the pictures themselves, as data sets of Hugging Face do: a column of {bytes, path} or of bytes.
A CSV whose first line holds a picture's path has no header, and that line is a row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipsieve.exceptions import InputRefused
from clipsieve.images import ImageSource
from clipsieve.paths import path_from_text
from clipsieve.shards import IMAGE_EXTENSIONS
from clipsieve.table_batches import (
    batches,
    column_names,
    csv_fields,
    encoding_of,
    json_items,
    json_lines,
    numbered_rows,
    text_lines,
)

LIST_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json", ".txt")
PATH_COLUMNS = ("image_path", "path", "file", "filename", "file_name")
_BEGINNING = 8192
PICTURE_COLUMNS = ("image", "img", "jpg", "png", "webp")
"""Columns of a Parquet file that may hold pictures themselves."""


def is_list(path: str) -> bool:
    """True for a file that is read as a list, by its suffix.

    A .txt is one if its first entry is the path of a picture, by its suffix or because it is there; captions lie beside
    pictures, too. A .json is one if it begins as an array.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".txt":
        return _is_path_of_picture(re.split(r"[\0\r\n]", _beginning(path).lstrip(), maxsplit=1)[0])
    if suffix == ".json":
        return _beginning(path).lstrip().startswith("[")
    return suffix in LIST_SUFFIXES


def _beginning(path: str) -> str:
    try:
        with open(path, encoding=encoding_of(Path(path)), errors="surrogateescape") as text:
            return text.read(_BEGINNING)
    except (OSError, UnicodeError):
        return ""


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


def items_in_table(path: str, column: str | None = None) -> Iterator[tuple[str, ImageSource]]:
    """Each image's name and the image, its path or its bytes, in the list's order.

    Paths are relative to the current folder, and read as `clipsieve score` writes them, so its tables are lists too.
    Pictures that lie in the table are called `train.parquet#17`, by their row.

    Args:
        column: as for `path_column`.

    Raises:
        InputRefused: the list cannot be read, has no such column, or a row has no path and no picture.
    """
    for number, value in _values(Path(path), column):
        data = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(data, bytes):
            yield f"{path}#{number}", data
            continue
        try:
            name = path_from_cell(value.get("path") if isinstance(value, dict) else value)
        except ValueError:
            raise InputRefused(f"{path}: row {number} has no path but {value!r:.60}") from None
        yield name, name


def paths_from_table(path: str, column: str | None = None) -> Iterator[str]:
    """The paths in a list, in its order; as `items_in_table`.

    Raises:
        InputRefused: also when the table holds pictures instead of paths.
    """
    for name, image in items_in_table(path, column):
        if isinstance(image, bytes):
            raise InputRefused(f"{path}: holds the pictures themselves; a list of paths is needed here")
        yield name


def _values(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    """Values of the column, with the number of each row."""
    kind = file.suffix.lower()
    if kind == ".txt":
        yield from text_lines(file)
    elif kind in (".jsonl", ".json"):
        rows = json_lines(file) if kind == ".jsonl" else json_items(file)
        yield from ((number, _value(file, row, column)) for number, row in rows)
    elif kind == ".parquet":
        name = _column(file, column_names(file), column)
        yield from enumerate((value for batch in batches(file, [name]) for value in batch[name]), start=1)
    else:
        yield from _csv_values(file, column)


def _csv_values(file: Path, column: str | None) -> Iterator[tuple[int, Any]]:
    names = column_names(file)
    place = _path_among(names) if column is None and path_column(names) in (None, *names[:1]) else None
    if place is None or names[place] in PATH_COLUMNS:
        name = _column(file, names, column)
        if column is None and name not in PATH_COLUMNS and any(mark in name for mark in "/\\"):
            raise InputRefused(
                f"{file}: its first line is {name!r:.80}: a path, or the name of the column? Give the list a line "
                "`image_path` at its top, or name the column with --path-column"
            )
        yield from ((number, row[name]) for number, row in numbered_rows(file))
    else:
        yield from ((number, fields[place]) for number, fields in csv_fields(file, len(names)))


def _path_among(fields: Sequence[str]) -> int | None:
    """The place of the only field that is the path of a picture, by its suffix or because it is there."""
    paths = [place for place, field in enumerate(fields) if _is_path_of_picture(field)]
    return paths[0] if len(paths) == 1 else None


def _is_path_of_picture(text: str) -> bool:
    return text.rpartition(".")[2].lower() in IMAGE_EXTENSIONS or os.path.isfile(path_from_text(text))


def _value(file: Path, row: Any, column: str | None) -> Any:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise InputRefused(f"{file}: found {row!r:.60} where an object or a path should be")
    return row[_column(file, list(row), column)]


def _column(file: Path, names: list[str], column: str | None) -> str:
    name = path_column(names, column)
    if name is None and column is None and file.suffix.lower() == ".parquet":
        name = next((name for name in PICTURE_COLUMNS if name in names), None)
    if name is None:
        problem = f"no column {column!r}" if column is not None else "none of the columns is known to hold paths"
        raise InputRefused(f"{file}: {problem}; name one with --path-column: {', '.join(names) or '(it is empty)'}")
    return name
