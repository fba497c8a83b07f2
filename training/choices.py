"""Reads pairwise choices: a table whose rows say which of two pictures is the better one.

    winner,loser
    a.jpg,b.jpg

CSV, JSON, JSON lines or Parquet; other columns are passed over. Paths are read as those of any other table
(`training.image_paths`). A pair may be there several times, and both ways: each row counts. A row that names one
picture twice, or lacks one, is a failure and not a choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipsieve.exceptions import TableError
from clipsieve.lists import column_like, path_from_cell
from clipsieve.paths import text_from_path
from clipsieve.table_batches import column_names, numbered_rows
from recipes.head_section import Head
from training.errors import StepError
from training.image_paths import ImagePaths
from training.sample import DataSet, Failure, Sample

WINNER, LOSER = "winner", "loser"


@dataclass(frozen=True)
class Choices:
    """Choices between pictures, by the names that a table gives them."""

    paths: list[str]
    """The pictures, in the order in which the table first names them."""
    pairs: np.ndarray
    """(m, 2) int64: places of winner and loser in `paths`."""
    problems: list[Failure] = field(default_factory=list)
    """Rows that are no choice."""
    rows: dict[str, int] = field(default_factory=dict)
    """The first row that names each picture."""


def is_choices(file: Path) -> bool:
    """Return True if a table has columns of winners and losers.

    Raises:
        StepError: it cannot be read.
    """
    try:
        return _columns(column_names(file)) is not None
    except TableError:
        return False  # an object of paths and grades has no columns; what cannot be read is refused by its reader


def read_choices(file: Path) -> Choices:
    """The choices of a table.

    Raises:
        StepError: it cannot be read, lacks a column, or has no row that is a choice.
    """
    places: dict[str, int] = {}
    rows: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    problems: list[Failure] = []
    try:
        names = _columns(column_names(file))
        if names is None:
            raise StepError(f"{file}: a table of choices has the columns {WINNER} and {LOSER}")
        for number, row in numbered_rows(file):
            pair = _pair(row, names, f"{file.name} row {number}")
            if isinstance(pair, Failure):
                problems.append(pair)
                continue
            pairs.append((places.setdefault(pair[0], len(places)), places.setdefault(pair[1], len(places))))
            for name in pair:
                rows.setdefault(name, number)
    except TableError as error:
        raise StepError(str(error)) from error
    if not pairs:
        why = f"; the first: {problems[0].path}: {problems[0].message}" if problems else ""
        raise StepError(f"{file}: no row is a choice between two pictures{why}")
    return Choices(list(places), np.array(pairs, np.int64), problems, rows)


def samples_in_choices(file: Path, head: Head, image_root: Path | None = None) -> DataSet:
    """A sample without a label for each picture, and the choices between them.

    Raises:
        StepError: as for `read_choices`; or the head learns no order.
    """
    if not head.is_graded:
        raise StepError(
            f"{file}: choices between pictures are for a regression or ranking head, {head.name} is {head.task}; "
            "set its task in the recipe, or give a table of paths and labels"
        )
    choices = read_choices(file)
    images = ImagePaths(image_root or file.parent, image_root is not None)
    data = DataSet([], f"table {text_from_path(str(file.resolve()))}", failures=[*choices.problems])
    stored: list[str | None] = []
    for name in choices.paths:
        sample = _sample(name, images, f"{file.name} row {choices.rows[name]}")
        if isinstance(sample, Failure):
            data.failures.append(sample)
            stored.append(None)
        else:
            data.samples.append(sample)
            stored.append(sample.stored_path)
    for winner, loser in choices.pairs.tolist():
        better, worse = stored[winner], stored[loser]
        if better is not None and worse is not None:
            data.choices.append((better, worse))
    data.notes.extend(f"paths: {count} {reading}" for reading, count in images.other_readings.items())
    return data


def _columns(names: list[str]) -> tuple[str, str] | None:
    winner, loser = (column_like(names, name) for name in (WINNER, LOSER))
    return None if winner is None or loser is None else (winner, loser)


def _pair(row: dict[str, Any], names: tuple[str, str], origin: str) -> tuple[str, str] | Failure:
    pair = []
    for name in names:
        try:
            pair.append(path_from_cell(row.get(name)))
        except ValueError as error:
            return Failure(origin, "NO_CHOICE", f"{name} {error}; name an image")
    if pair[0] == pair[1]:
        return Failure(text_from_path(pair[0]), "SAME_PICTURE", f"a choice between a picture and itself ({origin})")
    return pair[0], pair[1]


def _sample(name: str, images: ImagePaths, origin: str) -> Sample | Failure:
    if "://" in name:
        return Failure(name, "NOT_LOCAL", f"only local files are read; fetch it first ({origin})")
    try:
        key, path = images.find(name)
    except LookupError as error:
        return Failure(text_from_path(name), "AMBIGUOUS_NAME", f"{error.args[0]} ({origin})")
    return Sample(key, path, None, origin=origin)
