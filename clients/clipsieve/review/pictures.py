"""The pictures of a review: their files, and what is known of each before anybody answers.

They come from a folder, which is searched as `clipsieve score` searches it, or from a table of scores. A picture keeps
its number while the page is open, whatever scores come later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipsieve.exceptions import InputRefused
from clipsieve.inputs import Inputs
from clipsieve.paths import path_from_text, text_from_path
from clipsieve.report.table import Column, read_names, read_scores
from clipsieve.results import Threshold
from clipsieve.table_batches import batches, column_names

_MOST_ERRORS = 0
GROUP_COLUMNS = ("group", "near_duplicates")


@dataclass
class Scores:
    """One column of scores of all pictures."""

    name: str
    """Head, or label as `<head>_<label>`."""
    values: np.ndarray
    """(N,) float32, NaN where there is none."""
    bands: np.ndarray
    """(N,) int16: place in `band_names`, -1 where there is no decision."""
    band_names: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    """Negative and positive class; none where a score is not about two classes."""
    thresholds: tuple[Threshold, ...] = ()
    """Ascending."""

    @property
    def threshold(self) -> float:
        """Where the decision changes first; without one 0.5 of a probability, else the middle of the scores."""
        if self.thresholds:
            return self.thresholds[0].value
        scores = self.values[np.isfinite(self.values)]
        if self.class_names or not len(scores) or (scores.min() >= 0 and scores.max() <= 1):
            return 0.5
        return float(np.median(scores))

    @property
    def count(self) -> int:
        """Pictures that have a score."""
        return int(np.isfinite(self.values).sum())


@dataclass
class Pictures:
    """Columns of equal length, a row a picture."""

    names: list[str]
    """Paths as tables have them."""
    paths: list[str]
    """Files, from the root."""
    scores: list[Scores] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    """Labels that the table has; empty without such a column."""
    groups: np.ndarray | None = None
    """(N,) int32: number of the group of near-duplicates, -1 for a picture alone; None where nothing says."""
    version: int = 0
    """Changes with the scores."""

    def __post_init__(self) -> None:
        self.place_of = {path: place for place, path in enumerate(self.paths)}

    def __len__(self) -> int:
        return len(self.paths)

    def column(self, name: str | None) -> Scores | None:
        """The scores of a head or label, by default the first; None while there are none."""
        return next((each for each in self.scores if name in (None, "", each.name)), None)

    def take(self, other: Pictures, only_known: bool = False) -> None:
        """Take the scores, labels and groups of other pictures, for those of the same path.

        Args:
            other: pictures of a table.
            only_known: pass over those that are not here; by default they come behind the last.
        """
        pairs = [
            (row, self._place(name, path))
            for row, (name, path) in enumerate(zip(other.names, other.paths, strict=True))
            if not only_known or path in self.place_of
        ]
        rows, places = np.array(pairs, int).reshape(-1, 2).T
        count = len(self)
        labels: list[str | None] = [*self.labels, *[None] * (count - len(self.labels))] if self.labels else []
        if other.labels:
            labels = labels or [None] * count
            for row, place in pairs:
                labels[place] = other.labels[row]
        groups = None if self.groups is None else np.pad(self.groups, (0, count - len(self.groups)), constant_values=-1)
        if other.groups is not None:
            groups = np.full(count, -1, np.int32)
            groups[places] = other.groups[rows]
        self.scores = [_spread(each, rows, places, count) for each in other.scores]
        self.labels, self.groups = labels, groups
        self.version += 1

    def _place(self, name: str, path: str) -> int:
        place = self.place_of.setdefault(path, len(self.paths))
        if place == len(self.paths):
            self.names.append(name)
            self.paths.append(path)
        return place


def pictures_in_folder(folder: Path) -> tuple[Pictures, str]:
    """The pictures below a folder, without scores, and what was passed over.

    Raises:
        InputRefused: there are none.
    """
    inputs = Inputs((str(folder),))
    paths = [os.path.abspath(path) for path in inputs if not os.path.isdir(path)]
    summary = inputs.passed_over.summary().partition(";")[0]
    if not paths:
        raise InputRefused(f"{folder}: holds no pictures" + (f" ({summary})" if summary else ""))
    return Pictures([text_from_path(path) for path in paths], paths), summary


def pictures_in_table(table: Path, images: Path) -> Pictures:
    """The pictures of a table as `clipsieve score` or `python -m training.scores` writes it.

    Args:
        table: .parquet, .csv, .jsonl or .json.
        images: folder that relative paths start from.

    Raises:
        TableError: it cannot be read, has no rows or no column of scores.
        InputRefused: its pictures lie in shards.
    """
    read = read_scores(table, _MOST_ERRORS)
    if read.name_column == "key":
        raise InputRefused(f"{table}: its pictures lie in shards and are no files; review a table of files")
    names = read_names(read, np.arange(read.rows))
    paths = [os.path.abspath(os.path.join(images, path_from_text(name))) for name in names]
    kept = list(dict(zip(paths, range(len(paths)), strict=True)).values())  # the last row of a path
    rows = np.array(kept, int)
    extra = _texts(table, ("label", *GROUP_COLUMNS))
    labels = [extra["label"][row] or None for row in kept] if "label" in extra else []
    group = next((extra[name] for name in GROUP_COLUMNS if name in extra), None)
    groups = None if group is None else _group_numbers([group[row] for row in kept])
    scores = [_scores(column, rows) for column in read.columns]
    return Pictures([names[row] for row in kept], [paths[row] for row in kept], scores, labels, groups)


def _scores(column: Column, rows: np.ndarray) -> Scores:
    thresholds = column.thresholds() or [Threshold(value, "") for value in column.limits()]
    name = "score" if column.source.name == "probability" else column.source.title
    return Scores(
        name, column.scores[rows], column.bands[rows], column.band_names, column.class_names or (), tuple(thresholds)
    )


def _spread(scores: Scores, rows: np.ndarray, places: np.ndarray, count: int) -> Scores:
    values, bands = np.full(count, np.nan, np.float32), np.full(count, -1, np.int16)
    values[places], bands[places] = scores.values[rows], scores.bands[rows]
    return Scores(scores.name, values, bands, scores.band_names, scores.class_names, scores.thresholds)


def _texts(table: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of these names that a table has, as text."""
    present = [name for name in names if name in column_names(table)]
    texts: dict[str, list[str]] = {name: [] for name in present}
    for batch in batches(table, present) if present else ():
        for name in present:
            texts[name] += ["" if value is None else str(value) for value in batch[name]]
    return texts


def _group_numbers(names: Sequence[str]) -> np.ndarray:
    """(N,) int32 a number for each name that several pictures have, -1 for the others."""
    _, number, counts = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True, return_counts=True)
    alone = (counts == 1)[number] | np.array([not name.strip() for name in names], bool)
    return np.where(alone, -1, number).astype(np.int32)
