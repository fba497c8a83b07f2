"""Reads tables: a data set's list of paths and labels, and corrections, as CSV, JSON, JSON lines or Parquet.

    path,label            [{"path": "a.jpg", "label": "nsfw"}, …]      {"a.jpg": "nsfw", …}
    a.jpg,nsfw

Paths are relative to the table. A label is a class name, its index (0 or 1), a number (regression) or a
list of names (multilabel, which may also have a 0/1 column per label); an empty one means: not labelled.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, label_from, label_from_columns
from training.sample import Sample

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
_PATH_NAMES = ("path", "image_path")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what."""

    path: str | None = None
    """By default `path`, or `image_path`."""
    label: str = "label"
    split: str | None = None
    """`train`, `validation` or `test`, where the data set prescribes it."""


@dataclass(frozen=True)
class Table:
    """A table in memory."""

    file: Path
    names: list[str]
    rows: list[dict[str, Any]]
    first: int
    """The number by which a person finds the first row: its line in a CSV (2, below the header), else 1."""

    def where(self, row: int) -> str:
        """For messages: `labels.csv row 7`."""
        return f"{self.file.name} row {row + self.first}"

    def require(self, names: list[str], remedy: str) -> None:
        """
        Raises:
            StepError: a column is missing; names those found.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            found = ", ".join(self.names) or "none"
            raise StepError(f"{self.file}: no column {' or '.join(map(repr, missing))}; found: {found}. {remedy}")


def samples_in_table(file: Path, head: Head, columns: Columns) -> list[Sample]:
    """A sample for each row, in the table's order; a row that repeats another is left out.

    Raises:
        StepError: the table cannot be read, lacks a column or has no rows; a label the head cannot have; or one
            path with two labels.
    """
    table = read_table(file)
    path_name = columns.path or next((name for name in _PATH_NAMES if name in table.names), _PATH_NAMES[0])
    table.require([path_name], "Name the column of the paths with --path-column.")
    if columns.split is not None:
        table.require([columns.split], "Correct --split-column.")
    label_of = _label_reader(table, head, columns.label)
    first: dict[str, tuple[int, Sample]] = {}
    for number, row in enumerate(table.rows):
        sample = _sample(table, number, row, path_name, columns.split, label_of)
        before, twin = first.setdefault(sample.key, (number, sample))
        if (twin.label, twin.split) != (sample.label, sample.split):
            raise StepError(
                f"{file}: {sample.key!r} is labelled {twin.label} in {table.where(before)} and {sample.label} "
                f"in {table.where(number)}; remove one"
            )
    if not first:
        raise StepError(f"{file}: has no rows")
    return [sample for _, sample in first.values()]


def read_table(file: Path) -> Table:
    """
    Raises:
        StepError: there is no such file, it is damaged, or no table of a known kind.
    """
    readers: dict[str, Callable[[Path], Table]] = dict(
        zip(SUFFIXES, (_read_csv, _read_json, _read_json_lines, _read_parquet), strict=True)
    )
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise StepError(f"{file}: not a table that can be read; known: {', '.join(SUFFIXES)}")
    try:
        return reader(file)
    except FileNotFoundError as error:
        raise StepError(f"{file}: no such file") from error
    except UnicodeDecodeError as error:
        raise StepError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise StepError(f"{file}: cannot be read: {error}") from error


def _sample(
    table: Table,
    number: int,
    row: dict[str, Any],
    path_name: str,
    split_name: str | None,
    label_of: Callable[[dict[str, Any]], str | None],
) -> Sample:
    path = row.get(path_name)
    if not isinstance(path, str) or not path:
        raise StepError(f"{table.file}: {table.where(number)}: {path_name} is {path!r}, expected the path of an image")
    try:
        label = label_of(row)
    except LabelError as error:
        raise StepError(f"{table.file}: {table.where(number)} ({path}): {error}") from error
    split = (row.get(split_name) or None) if split_name else None
    if split not in (None, "train", "validation", "test"):
        raise StepError(f"{table.file}: {table.where(number)}: {split_name} {split!r} is not train, validation or test")
    key = Path(path).as_posix()
    return Sample(key, (table.file.parent / path).resolve(), label, split, origin=table.where(number))


def _label_reader(table: Table, head: Head, label_name: str) -> Callable[[dict[str, Any]], str | None]:
    if label_name in table.names:
        return lambda row: label_from(row.get(label_name), head)
    if head.task == "multilabel":
        table.require(head.labels, f"Give a 0/1 column per label, or a list in the column {label_name!r}.")
        return lambda row: label_from_columns([row.get(name) for name in head.labels], head)
    table.require([label_name], "Name the column of the labels with --label-column.")
    raise AssertionError("unreachable")


def _read_csv(file: Path) -> Table:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        rows = list(_whole_rows(file, reader))
        return Table(file, list(reader.fieldnames or []), rows, first=2)


def _whole_rows(file: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    """The rows, each with as many fields as the header."""
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            wanted = len(reader.fieldnames or [])
            raise StepError(f"{file}: row {number} (line {reader.line_num}) does not have the header's {wanted} fields")
        yield row


def _read_json(file: Path) -> Table:
    data = _parsed(file, file.read_text(encoding="utf-8"), "")
    if isinstance(data, dict) and not any(isinstance(value, dict) for value in data.values()):
        data = [{"path": path, "label": label} for path, label in data.items()]
    if not isinstance(data, list):
        raise StepError(f"{file}: expected a list of objects, or an object of path: label")
    return _from_objects(file, data)


def _read_json_lines(file: Path) -> Table:
    lines = file.read_text(encoding="utf-8").splitlines()
    return _from_objects(file, [_parsed(file, line, f" row {n}") for n, line in enumerate(lines, 1) if line.strip()])


def _parsed(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StepError(f"{file}:{where} not valid JSON: {error}") from error


def _from_objects(file: Path, objects: list[Any]) -> Table:
    names: dict[str, None] = {}
    for number, row in enumerate(objects, start=1):
        if not isinstance(row, dict):
            raise StepError(
                f'{file}: row {number} is {row!r:.60}, expected an object such as {{"path": …, "label": …}}'
            )
        names.update(dict.fromkeys(row))
    return Table(file, list(names), objects, first=1)


def _read_parquet(file: Path) -> Table:
    table = pq.ParquetFile(file).read()
    return Table(file, table.column_names, table.to_pylist(), first=1)
