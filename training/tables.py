"""Reads tables: a data set's list of paths and labels, and corrections, as CSV, JSON, JSON lines or Parquet.

    path,label            [{"path": "a.jpg", "label": "nsfw"}, …]      {"a.jpg": "nsfw", …}
    a.jpg,nsfw

Paths are relative to the table. A label is a class name, its index (0 or 1), a number (regression) or a
list of names (multilabel, which may also have a 0/1 column per label); an empty one means: not labelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsieve.exceptions import TableError
from clipsieve.lists import path_column, path_from_cell
from clipsieve.paths import text_from_path
from clipsieve.table_batches import column_names, numbered_rows
from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, label_from, label_from_columns
from training.sample import Sample


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what."""

    path: str | None = None
    """By default the client's, of any list of images: `clipsieve.lists.path_column`."""
    label: str = "label"
    split: str | None = None
    """`train`, `validation` or `test`, where the data set prescribes it."""
    group: str | None = None
    """The person, burst or video of each row; rows of one group keep to one side of a split."""
    image_root: Path | None = None
    """The folder that paths are relative to; by default the table's."""


@dataclass(frozen=True)
class Table:
    """A table in memory."""

    file: Path
    names: list[str]
    rows: list[dict[str, Any]]
    numbers: list[int]
    """The number by which a person finds each row: in a CSV the header is row 1, of JSON lines it is the line."""

    def where(self, row: int) -> str:
        """For messages: `labels.csv row 7`."""
        return f"{self.file.name} row {self.numbers[row]}"

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
    path_name = path_column(table.names, columns.path) or columns.path or "path"
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
    try:
        numbered = list(numbered_rows(file, mapping=("path", "label")))
        names = list(dict.fromkeys(name for _, row in numbered for name in row)) or column_names(file)
    except TableError as error:
        raise StepError(str(error)) from error
    return Table(file, names, [row for _, row in numbered], [number for number, _ in numbered])


def _sample(
    table: Table,
    number: int,
    row: dict[str, Any],
    path_name: str,
    split_name: str | None,
    label_of: Callable[[dict[str, Any]], str | None],
) -> Sample:
    try:
        path = path_from_cell(row.get(path_name))
    except ValueError as error:
        raise StepError(f"{table.file}: {table.where(number)}: {path_name} {error}; name an image") from error
    try:
        label = label_of(row)
    except LabelError as error:
        raise StepError(f"{table.file}: {table.where(number)} ({path}): {error}") from error
    split = (row.get(split_name) or None) if split_name else None
    if split not in (None, "train", "validation", "test"):
        raise StepError(f"{table.file}: {table.where(number)}: {split_name} {split!r} is not train, validation or test")
    key = text_from_path(Path(path).as_posix())
    return Sample(key, (table.file.parent / path).resolve(), label, split, origin=table.where(number))


def _label_reader(table: Table, head: Head, label_name: str) -> Callable[[dict[str, Any]], str | None]:
    if label_name in table.names:
        return lambda row: label_from(row.get(label_name), head)
    if head.task == "multilabel":
        table.require(head.labels, f"Give a 0/1 column per label, or a list in the column {label_name!r}.")
        return lambda row: label_from_columns([row.get(name) for name in head.labels], head)
    table.require([label_name], "Name the column of the labels with --label-column.")
    raise AssertionError("unreachable")
