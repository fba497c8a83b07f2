"""Reads from a table of scores the columns that arrange its files, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsieve.arrange import Scored
from clipsieve.exceptions import TableError, UnknownHead
from clipsieve.paths import path_from_text
from clipsieve.score_columns import decision_column, score_columns, score_from_cell
from clipsieve.table_batches import Batch, batches, column_names

_NAMES = ("image_path", "video_path")


@dataclass(frozen=True)
class Source:
    """The columns by which files are arranged."""

    name: str
    """Column of the files' paths."""
    score: str
    band: str | None
    """Column of `allow`, `review`, `block`, or of the class; None when nothing is decided."""
    others: tuple[str, ...] = ()
    """Columns of scores that do not count."""
    head: str | None = None
    """Head that the rows must be of; needed for `probability`, whose name does not say."""


def source_of(names: Sequence[str], head: str | None = None) -> Source:
    """Chooses among the columns of a table.

    Args:
        head: a head's name, one of its labels as `<head>_<label>`, or a column; by default the first score counts.

    Raises:
        TableError: the columns are not those of scored files.
        UnknownHead: there is no score of that head; lists those there are.
    """
    path = next((name for name in _NAMES if name in names), None)
    if path is None:
        what = "has keys of shards, not files" if "key" in names else f"has no column {' or '.join(_NAMES)}"
        raise TableError(f"the table {what}; its columns are {', '.join(names) or 'none'}")
    scores = score_columns(names)
    if not scores:
        raise TableError(f"the table has no column of scores; its columns are {', '.join(names)}")
    if "probability" in scores:
        named = None if head == "probability" else head
        return Source(path, "probability", "class_name" if "class_name" in names else None, head=named)
    score = scores[0] if head is None else _score_of(head, scores)
    return Source(path, score, decision_column(score, names), tuple(name for name in scores if name != score))


def source_in(table: Path, head: str | None = None) -> Source:
    """`source_of` a file's columns.

    Raises:
        TableError: it cannot be read.
    """
    names = column_names(table)
    try:
        return source_of(names, head)
    except (TableError, UnknownHead) as error:
        raise type(error)(f"{table}: {error}") from None


def read_scored(table: Path, source: Source) -> Iterator[Scored]:
    """The files of a table; one whose row has an error has neither score nor band.

    Raises:
        TableError: the table is damaged, or a value is not what its column holds.
        UnknownHead: the rows are of another head.
    """
    needed = (source.name, source.score, source.band, "error", "model_version")
    present = [name for name in column_names(table) if name in needed]
    number = 0
    for batch in batches(table, present):
        for place in range(len(batch[source.name])):
            number += 1
            try:
                yield _scored(batch, place, source)
            except (ValueError, UnknownHead) as error:
                kind = UnknownHead if isinstance(error, UnknownHead) else TableError
                raise kind(f"{table}: row {number}: {error}") from None


def _scored(batch: Batch, place: int, source: Source) -> Scored:
    def value(column: str | None) -> Any:
        cell = batch[column][place] if column in batch else None
        return None if cell == "" else cell

    path = value(source.name)
    if not isinstance(path, str):
        raise ValueError(f"{source.name} is {path!r:.60}, expected a path")
    if value("error") is not None:
        return Scored(path_from_text(path), None, None)
    version = value("model_version")
    if source.head is not None and version is not None and str(version).rpartition("-")[0] != source.head:
        raise UnknownHead(f"there is no score of head {source.head!r}, this one is by {version}")
    band = value(source.band)
    return Scored(
        path_from_text(path), score_from_cell(value(source.score), source.score), None if band is None else str(band)
    )


def _score_of(head: str, scores: Sequence[str]) -> str:
    for column in (head, f"{head}_score"):
        if column in scores:
            return column
    labels = [name for name in scores if name.startswith(f"{head}_")]
    if not labels:
        raise UnknownHead(f"there is no score of head {head!r}; there are: {', '.join(scores)}")
    return labels[0]
