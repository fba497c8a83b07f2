"""Reads tables: a data set's list of paths and labels, and corrections, as CSV, JSON, JSON lines or Parquet.

    path,label            [{"path": "a.jpg", "label": "nsfw"}, …]      {"a.jpg": "nsfw", …}
    a.jpg,nsfw            {"a.jpg": {"score": 6.5, …}, …}              {"ImageRecords": {"a.jpg": {"score": 6.5}}}

Paths are relative to the table, or to an image root; `training.image_paths` says how they are read. A label is a class
name, its index (0 or 1), a number (regression) or a list of names (multilabel, which may also have a 0/1 column per
label); an empty one means: not labelled. A regression's label may also be called `score`. A Parquet file may hold the
pictures themselves (`training.parquet_images`). Several rows of one path are several raters: `training.raters`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsieve.exceptions import TableError
from clipsieve.lists import column_like, path_column, path_from_cell
from clipsieve.paths import text_from_path
from clipsieve.table_batches import column_names, numbered_rows
from recipes.head_section import Head
from training.errors import StepError
from training.image_paths import ImagePaths
from training.labels import LabelError, label_from, label_from_columns
from training.parquet_images import EmbeddedImages, Place, class_names_in, images_in
from training.raters import merge_rows
from training.sample import DataSet, Failure, Sample, split_called


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by what they say."""

    path: str | None = None
    """By default the client's, of any list of images: `clipsieve.lists.path_column`."""
    label: str = "label"
    split: str | None = None
    """`train`, `validation` or `test`, where the data set prescribes it."""
    group: str | None = None
    """The person, burst or video of each row; rows of one group keep to one side of a split."""
    image_root: Path | None = None
    """The folder that paths are relative to; by default the table's. With it a bare id is looked for in all of it."""


@dataclass(frozen=True)
class Table:
    """A table in memory."""

    file: Path
    names: list[str]
    rows: list[dict[str, Any]]
    numbers: list[int]
    """The number by which a person finds each row: in a CSV the header is row 1, of JSON lines it is the line."""

    def where(self, row: int) -> str:
        """Name the row in a message: `labels.csv row 7`."""
        return f"{self.file.name} row {self.numbers[row]}"

    def require(self, names: list[str], remedy: str) -> None:
        """
        Raises:
            StepError: a column is missing; names those found.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            present = ", ".join(self.names) or "none"
            raise StepError(f"{self.file}: no column {' or '.join(map(repr, missing))}; found: {present}. {remedy}")

    def column(self, name: str, remedy: str) -> str:
        """The column of this name, whatever its case and the spaces around it.

        Raises:
            StepError: there is none.
        """
        same = column_like(self.names, name)
        if same is None:
            self.require([name], remedy)
            raise AssertionError("unreachable")
        return same


def samples_in_table(file: Path, head: Head, columns: Columns, split: str | None = None) -> DataSet:
    """A sample for each path, in the table's order.

    Args:
        file: .csv, .tsv, .json, .jsonl or .parquet.
        head: whose task and class_names say what a label may be.
        columns: where the table says what.
        split: of all rows that say none themselves.

    Raises:
        StepError: the table cannot be read, lacks a column or has no rows, none of which can be used; a row without a
            path; or a label the head cannot have.
    """
    images = images_in(file, columns.path) if file.suffix.lower() == ".parquet" else None
    table = read_table(file) if images is None else _table_of(file, images)
    if not table.rows and table.names:
        raise StepError(f"{file}: has no rows")
    reader = _Rows(table, images, head, columns, split)
    data = DataSet([], f"table {text_from_path(str(file.resolve()))}", notes=reader.notes)
    rows: list[tuple[int, Sample]] = []
    for number in range(len(table.rows)):
        read = reader.read(number)
        if isinstance(read, Failure):
            data.failures.append(read)
        else:
            rows.append((number, read))
    merge_rows(rows, table.where, head, data)
    data.notes.extend(reader.path_notes())
    if not data.samples and data.failures:
        failure = data.failures[0]
        raise StepError(f"{file}: no row can be used; the first: {failure.path}: {failure.code}: {failure.message}")
    return data


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


def has_labels(file: Path, head: Head, columns: Columns) -> bool:
    """Return True if a table has a column of labels, as a hub's metadata.csv of captions has none.

    Raises:
        StepError: as for `read_table`.
    """
    table = read_table(file)
    names = [columns.label, *(["score"] if head.is_graded else [])]
    flags = head.task == "multilabel" and all(label in table.names for label in head.labels)
    return flags or any(column_like(table.names, name) is not None for name in names)


def _table_of(file: Path, images: EmbeddedImages) -> Table:
    return Table(file, images.names, images.rows, list(range(1, len(images.rows) + 1)))


class _Rows:
    """Reads the rows of one table."""

    def __init__(
        self, table: Table, images: EmbeddedImages | None, head: Head, columns: Columns, split: str | None
    ) -> None:
        self.notes: list[str] = []
        self._table = table
        self._places = images.places if images else None
        self._path_name = images.name if images else self._path_column(columns.path)
        self._split = split
        self._split_name = self._optional(columns.split, "Correct --split-column.")
        self._group_name = self._optional(columns.group, "Correct --group-column.")
        self._paths = ImagePaths(columns.image_root or table.file.parent, columns.image_root is not None)
        self._ids_are_paths = columns.image_root is not None
        self._label_of = self._label_reader(head, columns.label)
        if self._split_name is not None:
            self.notes.append(f"split: from the column {self._split_name} of {table.file.name}")

    def read(self, number: int) -> Sample | Failure:
        """The sample of a row, counted from 0."""
        table, row = self._table, self._table.rows[number]
        origin = table.where(number)
        place = self._places[number] if self._places else None
        named = self._named(row.get(self._path_name), place, origin)
        try:
            label = self._label_of(row)
        except LabelError as error:
            raise StepError(f"{table.file}: {origin} ({named}): {error}") from error
        split, group = self._split_of(row, origin), self._group_of(row)
        if place is not None:
            key = text_from_path(named or f"{table.file.stem}/{place.number}")
            return Sample(key, table.file.resolve(), label, split, group, place=place, origin=origin)
        if "://" in named:
            return Failure(named, "NOT_LOCAL", f"only local files are read; fetch it first ({origin})")
        try:
            key, path = self._paths.find(named)
        except LookupError as error:
            return Failure(text_from_path(named), "AMBIGUOUS_NAME", f"{error.args[0]} ({origin})")
        return Sample(key, path, label, split, group, origin=origin)

    def path_notes(self) -> list[str]:
        """Say how paths were read that are no files as they are written."""
        return [f"paths: {count} {reading}" for reading, count in self._paths.other_readings.items()]

    def _path_column(self, name: str | None) -> str:
        table = self._table
        column = path_column(table.names, name) or name or "path"
        table.require([column], "Name the column of the paths with --path-column.")
        return column

    def _optional(self, name: str | None, remedy: str) -> str | None:
        return None if name is None else self._table.column(name, remedy)

    def _named(self, value: Any, place: Place | None, origin: str) -> str:
        """The path in a cell; empty for a picture inside the table that has none."""
        if place is not None and not value:
            return ""
        if self._ids_are_paths and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        try:
            return path_from_cell(value)
        except ValueError as error:
            problem = f"{self._path_name} {error}; name an image"
            raise StepError(f"{self._table.file}: {origin}: {problem}") from error

    def _split_of(self, row: dict[str, Any], origin: str) -> str | None:
        value = row.get(self._split_name) if self._split_name else None
        if value is None or not str(value).strip():
            return self._split
        split = split_called(str(value))
        if split is None:
            problem = f"{self._split_name} {value!r} is not train, validation or test"
            raise StepError(f"{self._table.file}: {origin}: {problem}")
        return split

    def _group_of(self, row: dict[str, Any]) -> str | None:
        value = row.get(self._group_name) if self._group_name else None
        return None if value is None or not str(value).strip() else str(value).strip()

    def _label_reader(self, head: Head, label_name: str) -> Callable[[dict[str, Any]], str | None]:
        table = self._table
        name = column_like(table.names, label_name)
        if name is None and head.task == "multilabel":
            table.require(head.labels, f"Give a 0/1 column per label, or a list in the column {label_name!r}.")
            return lambda row: label_from_columns([row.get(label) for label in head.labels], head)
        if name is None and head.is_graded and label_name == "label":
            name = column_like(table.names, "score")
            if name is not None:
                self.notes.append(f"labels: the column {name} of {table.file.name}")
        if name is None:
            name = table.column(label_name, "Name the column of the labels with --label-column.")
        named = class_names_in(table.file, name) if table.file.suffix.lower() == ".parquet" else None
        if named is None or head.is_graded:
            return lambda row: label_from(row.get(name), head)
        return lambda row: label_from(_name_of(row.get(name), named), head)


def _name_of(value: Any, names: list[str]) -> Any:
    """The name behind an index of a Parquet file that says its names; -1 is its mark for no label."""
    if isinstance(value, list):
        return [_name_of(part, names) for part in value]
    if type(value) is not int or value == -1:
        return None if value == -1 else value
    if not 0 <= value < len(names):
        raise LabelError(f"label {value} is none of the file's {len(names)} names")
    return names[value]
