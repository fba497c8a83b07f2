"""Reads a table of scores for a report: all its scores, and the names of the few rows that are shown.

    image_path,probability,prediction,class_name,decision,error,model_version
    image_path,nsfw_score,nsfw_decision,nsfw_class_name,…,error,model_version

A column of scores is named `probability` or ends in `_score`. The table is streamed twice: once for the
numbers of every row, four bytes a score, and once for the texts of the rows that were chosen.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipsieve.bands import rank_of
from clipsieve.exceptions import TableError
from clipsieve.results import Threshold
from clipsieve.run_record import RunRecord, ScoreFacts, read_record
from clipsieve.score_columns import decision_column, score_columns
from clipsieve.scoring import shortest
from clipsieve.table_batches import Batch, batches, column_names

Order = Literal["highest", "lowest", "near", "sample"]

_NAMES = ("image_path", "video_path", "key", "path")
_CODE = re.compile(r"([A-Z][A-Z0-9_]+)(?:: *|$)")


@dataclass(frozen=True)
class ScoreColumn:
    """A column of scores and the columns that go with it."""

    name: str
    decision: str | None
    """The column of its bands: `<head>_decision`, `decision`, `prediction`, or a multiclass `<head>_class_name`."""
    class_name: str | None

    @property
    def title(self) -> str:
        return self.name.removesuffix("_score")


@dataclass(frozen=True)
class RowError:
    """A row without a score."""

    name: str
    code: str
    message: str


@dataclass
class Column:
    """One column of scores, and the decisions that go with it."""

    source: ScoreColumn
    scores: np.ndarray
    """(N,) float32, NaN where there is none."""
    bands: np.ndarray
    """(N,) int16: place in `band_names`, -1 where there is no decision."""
    band_names: list[str]
    class_names: tuple[str, str] | None
    """Negative and positive, as the run's record says, or the table names exactly these two."""
    facts: ScoreFacts
    """What the run's record says of the scores."""

    def axis(self) -> tuple[float, float]:
        """0 and 1, or whole numbers around the scores of a regression."""
        scores = self.scores[np.isfinite(self.scores)]
        if not len(scores) or (scores.min() >= 0 and scores.max() <= 1):
            return 0.0, 1.0
        low, high = math.floor(scores.min()), math.ceil(scores.max())
        return float(low), float(max(high, low + 1))

    def thresholds(self) -> list[Threshold]:
        """The head's own, ascending; none where they are not known, or the table was decided by others."""
        gaps = self._gaps()
        known = [np.float32(each.value) for each in self.facts.thresholds]
        if gaps is None or any(not any(low < value <= high for value in known) for low, high in gaps):
            return []
        return list(self.facts.thresholds)

    def limits(self) -> list[float]:
        """Scores where one band ends and the next begins; empty when the bands do not follow the scores.

        They are the head's thresholds or, where these are not known, the simplest numbers that divide the bands.
        """
        if known := self.thresholds():
            return [each.value for each in known]
        return [_simplest(low, high) for low, high in self._gaps() or []]

    def _gaps(self) -> list[tuple[float, float]] | None:
        """Highest score of each band and lowest of the next; None when the bands do not follow the scores."""
        parts = [self.scores[self.bands == band] for band in range(len(self.band_names))]
        parts = [part[np.isfinite(part)] for part in parts]
        parts = [part for part in parts if len(part)]
        gaps = [(float(below.max()), float(above.min())) for below, above in itertools.pairwise(parts)]
        return None if any(low >= high for low, high in gaps) else gaps


@dataclass
class ScoreTable:
    """A table of scores in numbers."""

    file: Path
    name_column: str
    """`image_path`, or `key` when the pictures are in a WebDataset shard."""
    rows: int
    columns: list[Column]
    errors: list[RowError]
    """The first ones."""
    error_codes: Counter[str]
    model_versions: Counter[str]
    record: RunRecord = field(default_factory=RunRecord)

    def column(self, name: str | None) -> Column:
        """The column of that name (`nsfw` or `nsfw_score`), by default the first.

        Raises:
            TableError: there is none; lists those there are.
        """
        for column in self.columns:
            if name in (None, column.source.name, column.source.title):
                return column
        known = ", ".join(column.source.name for column in self.columns)
        raise TableError(f"{self.file}: no column of scores {name!r}; there are: {known}")

    def scored(self) -> np.ndarray:
        """(N,) bool: rows that have a score in any column."""
        return np.logical_or.reduce([np.isfinite(column.scores) for column in self.columns])


def read_scores(file: Path, most_errors: int) -> ScoreTable:
    """
    Raises:
        TableError: no such file, not a table, damaged, without rows or without a column of scores; a score that is
            no number.
    """
    names = column_names(file)
    scan = _Scan(file, _name_column(file, names), _score_columns(file, names), most_errors)
    needed = [name for name in names if name in scan.needed_columns()]
    for batch in batches(file, needed):
        scan.add(batch)
    if not scan.rows:
        raise TableError(f"{file}: has no rows")
    return scan.table()


def read_names(table: ScoreTable, rows: np.ndarray) -> list[str]:
    """The name column's texts of these rows, in their order.

    Raises:
        TableError: the table has fewer rows now.
    """
    numbers = set(rows.tolist())
    names: dict[int, str] = {}
    start = 0
    for batch in batches(table.file, [table.name_column]):
        values = batch[table.name_column]
        names.update((row, _text(values[row - start])) for row in range(start, start + len(values)) if row in numbers)
        start += len(values)
    if len(names) < len(numbers):
        raise TableError(f"{table.file}: changed while it was read; try again")
    return [names[row] for row in rows.tolist()]


def choose_rows(column: Column, among: np.ndarray, order: Order, limit: int, threshold: float) -> np.ndarray:
    """The rows to show, best first; those without a score in this column come last.

    Args:
        among: (N,) bool.
        order: `sample` takes them at random, and the same ones each time.
    """
    rows = np.flatnonzero(among)
    if order == "sample":
        taken = np.random.default_rng(0).choice(rows, min(limit, len(rows)), replace=False)
        return np.sort(taken)
    scores = column.scores[rows].astype(np.float64)
    rank = {"highest": -scores, "lowest": scores, "near": np.abs(scores - threshold)}[order]
    return rows[np.argsort(rank, kind="stable")[:limit]]


class _Scan:
    """Gathers the numbers of a table, batch by batch."""

    def __init__(self, file: Path, name_column: str, columns: list[ScoreColumn], most_errors: int) -> None:
        self.rows = 0
        self._file = file
        self._name = name_column
        self._columns = [_Gathered(column) for column in columns]
        self._most_errors = most_errors
        self._errors: list[RowError] = []
        self._codes: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()

    def needed_columns(self) -> set[str | None]:
        sources = [column.source for column in self._columns]
        theirs = {name for source in sources for name in (source.name, source.decision, source.class_name)}
        return theirs | {self._name, "error", "model_version"}

    def add(self, batch: Batch) -> None:
        count = len(batch[self._name])
        has_score = np.zeros(count, bool)
        for column in self._columns:
            try:
                has_score |= np.isfinite(column.add(batch))
            except ValueError as error:
                raise TableError(f"{self._file}: rows {self.rows + 1} to {self.rows + count}: {error}") from None
        errors = batch.get("error") or [None] * count
        for row in range(count):
            if errors[row] or not has_score[row]:
                self._add_error(_text(batch[self._name][row]), _text(errors[row]))
        self._versions.update(str(version) for version in batch.get("model_version", []) if version)
        self.rows += count

    def _add_error(self, name: str, text: str) -> None:
        match = _CODE.match(text)
        code, message = (match[1], text[match.end() :]) if match else ("ERROR" if text else "NO_SCORE", text)
        self._codes[code] += 1
        if len(self._errors) < self._most_errors:
            self._errors.append(RowError(name, code, message))

    def table(self) -> ScoreTable:
        record = read_record(self._file)
        columns = [column.whole(record.scores.get(column.source.name, ScoreFacts())) for column in self._columns]
        return ScoreTable(self._file, self._name, self.rows, columns, self._errors, self._codes, self._versions, record)


@dataclass
class _Gathered:
    """One column of scores so far."""

    source: ScoreColumn
    scores: list[np.ndarray] = field(default_factory=list)
    bands: list[np.ndarray] = field(default_factory=list)
    codes: dict[int | str, int] = field(default_factory=dict)
    """Decision as the table has it → number in `bands`."""
    names_of: dict[int | str, set[str]] = field(default_factory=dict)
    """Decision → class names seen with it."""

    def add(self, batch: Batch) -> np.ndarray:
        """The batch's scores."""
        numbers = [_number(value, self.source.name) for value in batch[self.source.name]]
        with np.errstate(over="ignore"):
            scores = np.array(numbers, np.float32)
        scores[~np.isfinite(scores)] = np.nan
        self.scores.append(scores)
        decisions = self._decisions(batch, len(scores))
        codes = [-1 if each is None else self.codes.setdefault(each, len(self.codes)) for each in decisions]
        self.bands.append(np.array(codes, np.int16))
        return scores

    def _decisions(self, batch: Batch, count: int) -> list[int | str | None]:
        if self.source.decision is None:
            return [None] * count
        is_class = self.source.decision.endswith("class_name")
        decisions = [_class(value) if is_class else _decision(value) for value in batch[self.source.decision]]
        if self.source.class_name is not None:
            for decision, name in zip(decisions, batch[self.source.class_name], strict=True):
                if decision is not None and name:
                    self.names_of.setdefault(decision, set()).add(str(name))
        return decisions

    def whole(self, facts: ScoreFacts) -> Column:
        order = sorted(self.codes, key=_band_rank)
        place = np.full(len(self.codes) + 1, -1, np.int16)  # the last one is for -1
        for position, decision in enumerate(order):
            place[self.codes[decision]] = position
        classes = (facts.class_names[0], facts.class_names[1]) if len(facts.class_names) == 2 else self._class_names()
        named = [self._band_name(decision) for decision in order]
        bands = place[np.concatenate(self.bands)] if self.bands else np.empty(0, np.int16)
        scores = np.concatenate(self.scores) if self.scores else np.empty(0, np.float32)
        return Column(self.source, scores, bands, named, classes, facts)

    def _class_names(self) -> tuple[str, str] | None:
        negative = set().union(*(names for each, names in self.names_of.items() if not _band_rank(each)[0]))
        positive = set().union(*(names for each, names in self.names_of.items() if _band_rank(each)[0]))
        return (negative.pop(), positive.pop()) if len(negative) == len(positive) == 1 else None

    def _band_name(self, decision: int | str) -> str:
        if self.source.decision == "prediction":
            names = self.names_of.get(decision, set())
            return next(iter(names)) if len(names) == 1 else f"class {decision}"
        return f"passes {decision}" if isinstance(decision, int) else decision


def _simplest(low: float, high: float) -> float:
    """The number above `low`, not above `high`, that people would choose: 0.5, or the one with the fewest digits."""
    if low < 0.5 <= high:
        return 0.5
    for places in range(8):
        number = math.floor(round(high * 10**places, 6)) / 10**places
        if low < number <= high:
            return number
    return shortest(high)


def _band_rank(decision: int | str) -> tuple[int, str]:
    if isinstance(decision, int):
        return decision, ""
    return rank_of(decision), decision


def _class(value: Any) -> str | None:
    return str(value) if value else None


def _decision(value: Any) -> int | str | None:
    """A band's name, or how many thresholds were passed, however that is written; None when there is none."""
    if value is None or value == "":
        return None
    try:
        return int(float(value))
    except (ValueError, OverflowError):
        return None if isinstance(value, float) else str(value)


def _number(value: Any, column: str) -> float:
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} {str(value)!r:.60} is not a number") from None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _name_column(file: Path, names: list[str]) -> str:
    for name in _NAMES:
        if name in names:
            return name
    raise TableError(f"{file}: no column image_path or key; found: {', '.join(names) or 'none'}")


def _score_columns(file: Path, names: list[str]) -> list[ScoreColumn]:
    scores = score_columns(names)
    if not scores:
        raise TableError(
            f"{file}: no column of scores (probability, or a name that ends in _score); "
            f"found: {', '.join(names) or 'none'}. Write the table with `clipsieve score`"
        )
    return [_score_column(name, names) for name in scores]


def _score_column(name: str, names: list[str]) -> ScoreColumn:
    if name == "probability":
        decision = next((each for each in ("decision", "prediction") if each in names), None)
        return ScoreColumn(name, decision, "class_name" if "class_name" in names else None)
    head = name.removesuffix("_score")
    classes = f"{head}_class_name"
    return ScoreColumn(name, decision_column(name, names), classes if classes in names else None)
