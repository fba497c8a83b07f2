"""Selects rows of score tables.

A row's score is compared in float32, as the server compares it: a score written as 0.3 is at least 0.3. Conditions
are numbers and names, never expressions. A row with an error, or without a finite score, is dropped unless errors
are kept.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsieve.bands import BANDS
from clipsieve.exceptions import FilterError
from clipsieve.score_columns import score_from_cell
from clipsieve.table_batches import Batch, batches, column_names

_NAMES = ("key", "image_path", "video_path")


@dataclass(frozen=True)
class Wanted:
    """Conditions on a row; a row stays that meets every condition given."""

    at_least: float | None = None
    below: float | None = None
    bands: tuple[str, ...] = ()
    """Names of bands or classes, or decisions as numbers: a row in any of them stays."""
    keep_errors: bool = False

    def keeps(self, row: ScoreRow) -> bool:
        if row.error is not None:
            return self.keep_errors
        score = math.nan if row.score is None else _float32(row.score)
        return (
            (self.at_least is None or score >= _float32(self.at_least))
            and (self.below is None or score < _float32(self.below))
            and (not self.bands or not row.bands.isdisjoint(self.bands))
        )

    @property
    def needs_score(self) -> bool:
        return self.at_least is not None or self.below is not None


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table."""

    name: str
    """Key or path of the sample, as the table has it (see `clipsieve.paths`)."""
    score: float | None
    bands: frozenset[str]
    """Everything its band or class is called: `{"0", "allow", "safe"}`."""
    error: str | None


@dataclass(frozen=True)
class Columns:
    """The columns of a table that matter for one head; None where there is none."""

    name: str
    score: str | None
    decision: str | None
    bands: tuple[str, ...]
    """Columns with names of bands or classes."""
    error: str | None

    def present(self) -> list[str]:
        return [name for name in (self.name, self.score, self.decision, *self.bands, self.error) if name is not None]


@dataclass
class Tally:
    """Counts of kept and dropped rows."""

    kept: int = 0
    dropped: int = 0
    failed: int = 0
    """Rows with an error, kept or not."""
    shards: int = 0
    """Shards written."""
    finished: int = 0
    """Shards that an earlier run had written; their rows are not counted."""

    def count(self, row: ScoreRow, kept: bool) -> None:
        self.kept += kept
        self.dropped += not kept
        self.failed += row.error is not None

    def __str__(self) -> str:
        text = f"{self.kept} kept, {self.dropped} dropped; {self.failed} of them without a score"
        if self.shards or self.finished:
            text += f"; {self.shards} shards written, {self.finished} finished before"
        return text


def columns_of(table: Path, wanted: Wanted, head: str | None = None) -> Columns:
    """Finds the columns that `wanted` needs.

    Args:
        head: takes `<head>_score`, `<head>_decision`, `<head>_band` and `<head>_class_name`; or the column of this name
            for the score. By default the only score.

    Raises:
        TableError, FilterError: a column that is needed is missing or not the only one; lists those there are.
    """
    names = column_names(table)
    score = _score_column(table, names, head, wanted.needs_score)
    head = (score or head or "").removesuffix("_score")
    plain = score == "probability"
    decision = _first(names, f"{head}_decision", "prediction" if plain else "")
    titles = (f"{head}_band", f"{head}_class_name", *(("band", "class_name", "decision") if plain else ()))
    bands = tuple(name for name in titles if name in names)
    _check_bands(table, wanted.bands, decision, bands)
    name = _first(names, *_NAMES)
    if name is None:
        raise FilterError(f"{table}: no column key or image_path; there are: {', '.join(names)}")
    return Columns(name, score, decision, bands, _first(names, "error"))


def read_rows(table: Path, columns: Columns, wanted: Wanted) -> Iterator[ScoreRow]:
    """The rows of a score table.

    Raises:
        TableError, FilterError: the table is damaged, or a value is not what its column holds.
    """
    number = 0
    for batch in batches(table, columns.present()):
        for place in range(len(batch[columns.name])):
            number += 1
            try:
                yield _row(batch, place, columns, wanted)
            except (TypeError, ValueError) as error:
                raise FilterError(f"{table}: row {number}: {error}") from None


def kept_rows(table: Path, columns: Columns, wanted: Wanted, tally: Tally) -> Iterator[ScoreRow]:
    for row in read_rows(table, columns, wanted):
        kept = wanted.keeps(row)
        tally.count(row, kept)
        if kept:
            yield row


def columns_of_all(tables: Sequence[Path], wanted: Wanted, head: str | None) -> list[Columns]:
    """`columns_of` each table; their names and scores must have the same columns, to go to one list."""
    per_table = [columns_of(table, wanted, head) for table in tables]
    for table, columns in zip(tables, per_table, strict=True):
        if (columns.name, columns.score) != (per_table[0].name, per_table[0].score):
            theirs = f"{columns.name}, {columns.score} but {tables[0]} {per_table[0].name}, {per_table[0].score}"
            raise FilterError(f"{table} has the columns {theirs}: filter them one by one")
    return per_table


def _score_column(table: Path, names: list[str], head: str | None, needed: bool) -> str | None:
    if head is not None:
        for name in (f"{head}_score", head):
            if name in names:
                return name
        if needed:
            raise FilterError(f"{table}: no column {head}_score; there are: {', '.join(names)}")
        return None
    candidates = [name for name in names if name == "probability" or name.endswith("_score")]
    if len(candidates) != 1:
        what = f"several columns of scores, {', '.join(candidates)}" if candidates else "no column of scores"
        raise FilterError(f"{table}: {what}; choose with --head. There are: {', '.join(names)}")
    return candidates[0]


def _check_bands(table: Path, chosen: Sequence[str], decision: str | None, bands: tuple[str, ...]) -> None:
    if chosen and decision is None and not bands:
        raise FilterError(f"{table}: no column of decisions, bands or classes for --band {chosen[0]}")
    unknown = [band for band in chosen if band not in BANDS and not band.isdecimal()]
    if unknown and not bands:
        raise FilterError(
            f"{table}: unknown band {unknown[0]!r}: {decision} has allow, review, block (of grades bad, fair, good) "
            "or numbers"
        )


def _row(batch: Batch, place: int, columns: Columns, wanted: Wanted) -> ScoreRow:
    def value(column: str | None) -> Any:
        cell = batch[column][place] if column is not None else None
        return None if cell == "" else cell

    name = value(columns.name)
    if not isinstance(name, str):
        raise ValueError(f"{columns.name} is {name!r:.60}, expected text")
    score = score_from_cell(value(columns.score), columns.score)
    bands = _bands(value(columns.decision), [value(column) for column in columns.bands])
    error = value(columns.error)
    if error is None and score is None and columns.score is not None:
        error = "no score"
    if error is None and wanted.bands:
        error = None if bands else "no decision"
        _check_named(bands, wanted, columns)
    return ScoreRow(name, score, bands, None if error is None else str(error))


def _bands(decision: Any, names: list[Any]) -> frozenset[str]:
    bands = {str(name) for name in names if name is not None}
    if decision is None or (isinstance(decision, float) and math.isnan(decision)):
        return frozenset(bands)
    try:
        number = int(float(decision))
    except (ValueError, OverflowError):
        return frozenset(bands | {str(decision)})
    return frozenset(bands | ({"0", "allow"} if number == 0 else {str(number)}))


def _check_named(bands: frozenset[str], wanted: Wanted, columns: Columns) -> None:
    """Refuse to guess what a number above 0 means."""
    word = next((band for band in wanted.bands if band in ("review", "block")), None)
    if word is not None and bands.isdisjoint(BANDS) and any(band.isdecimal() for band in bands):
        raise ValueError(
            f"{columns.decision} has numbers only, and 1 is block for a head with one threshold but review for one "
            f"with two: give --band 1 or --band 2 instead of --band {word}"
        )


def _first(names: list[str], *candidates: str) -> str | None:
    return next((name for name in candidates if name in names), None)


def _float32(value: float) -> float:
    return ctypes.c_float(value).value
