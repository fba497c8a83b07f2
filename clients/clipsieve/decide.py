"""Decides anew over a table of scores, by other thresholds, without a server: a file is read and another written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipsieve.bands import LOWEST, OF_CLASSES, OF_GRADES, band_of, words_with
from clipsieve.exceptions import TableError
from clipsieve.outputs import replacing, table_from_rows, write_table
from clipsieve.results import Threshold
from clipsieve.run_record import ScoreFacts, read_record, write_record
from clipsieve.score_columns import score_columns, score_from_cell
from clipsieve.table_batches import Batch, batches, column_names

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Decided:
    """The columns that a score decides."""

    score: str
    decision: str
    prediction: str | None
    """The column, in the table of one binary head, that is 1 where the first threshold is passed."""
    class_name: str | None

    @classmethod
    def of(cls, table: Path, head: str | None = None) -> Decided:
        """
        Args:
            head: the head, or head and label (`tags_cat`), whose score decides; by default the only one.

        Raises:
            TableError: there is none, or several, or the table decides nothing by this score.
        """
        names = column_names(table)
        score = _score_column(table, names, head)
        if score == "probability":
            return cls(score, "decision", "prediction", "class_name")
        stem = score.removesuffix("_score")
        if f"{stem}_decision" not in names:
            raise TableError(
                f"{table}: {score} has no column {stem}_decision: the class of a multiclass head is that of its "
                "highest score, whatever a threshold says"
            )
        class_name = f"{stem}_class_name"
        return cls(score, f"{stem}_decision", None, class_name if class_name in names else None)


@dataclass(frozen=True)
class Changes:
    """Rows by their decision before and after."""

    counts: Counter[tuple[str, str]]

    def summary(self) -> str:
        """`1000 rows: 700 allow, 300 block; 12 changed (12 allow → block)`"""
        after: Counter[str] = Counter()
        for (_, band), count in self.counts.items():
            after[band] += count
        changed = {pair: count for pair, count in self.counts.items() if pair[0] and pair[0] != pair[1]}
        bands = ", ".join(
            f"{after[band]} {band}" for band in (*OF_CLASSES, *OF_GRADES, "without a score") if after[band]
        )
        moves = ", ".join(f"{count} {before} → {now}" for (before, now), count in sorted(changed.items()))
        return f"{after.total()} rows: {bands}; {sum(changed.values())} changed" + (f" ({moves})" if moves else "")


def decide(table: Path, out: Path | None, thresholds: list[float], head: str | None = None) -> Changes:
    """Write the table with the decisions by these thresholds: below the first allow, from the last on block.

    Where the table has the words of grades, these. Rows without a score stay as they are. The file has its name when it
    is complete.

    Args:
        out: None counts alone.
        thresholds: ascending, at least one.
        head: as for `Decided.of`.

    Raises:
        TableError: see `Decided.of`; or a score is no number.
    """
    columns = Decided.of(table, head)
    limits = np.array(thresholds, np.float32)
    class_names = _class_names(table, columns) if columns.class_name else {}
    counts: Counter[tuple[str, str]] = Counter()
    schema = _schema(table, columns)

    def tables() -> Iterator[pa.Table]:
        for batch in batches(table, column_names(table)):
            yield table_from_rows(
                list(_decided_rows(table, batch, columns, limits, class_names, counts, schema)), schema
            )

    if out is None:
        deque(tables(), maxlen=0)
    else:
        with replacing(out, lambda partial: partial.unlink()) as file:
            write_table(file, out.suffix.lower(), tables(), schema, 0)
        _write_record(table, out, columns, thresholds)
    return Changes(counts)


def _write_record(table: Path, out: Path, columns: Decided, thresholds: list[float]) -> None:
    """Keep what the run of the table knew, with the thresholds that decide now."""
    record = read_record(table)
    facts = record.scores.get(columns.score, ScoreFacts())
    decided = replace(facts, thresholds=tuple(Threshold(value, "") for value in thresholds))
    write_record(out, replace(record, scores={**record.scores, columns.score: decided}))


def _decided_rows(
    table: Path, batch: Batch, columns: Decided, limits: np.ndarray, class_names: dict[int, str],
    counts: Counter[tuple[str, str]], schema: pa.Schema,
) -> Iterator[tuple[Any, ...]]:  # fmt: skip
    before = batch.get(columns.decision) or [None] * len(batch[columns.score])
    words = words_with(next(filter(None, before), None))
    for row, cell in enumerate(batch[columns.score]):
        cells = {name: values[row] for name, values in batch.items()}
        score = _score(table, cell, columns.score)
        if score is None:
            cells.setdefault(columns.decision, None)
            counts[str(before[row] or ""), "without a score"] += 1
        else:
            passed = int((np.float32(score) >= limits).sum())
            band = band_of(passed, len(limits), words)
            counts[str(before[row] or ""), band] += 1
            cells[columns.decision] = band
            if columns.prediction:
                cells[columns.prediction] = int(passed > 0)
            if columns.class_name:
                cells[columns.class_name] = class_names.get(int(passed > 0))
        yield tuple(_typed(cells.get(field.name), field) for field in schema)


def _typed(value: Any, field: pa.Field) -> Any:
    """A cell of a CSV, which is text, as its column's type; an empty one is missing."""
    import pyarrow as pa

    if value is None or value == "":
        return None
    if pa.types.is_floating(field.type):
        return float(value)
    if pa.types.is_integer(field.type):
        return int(value)
    return str(value) if pa.types.is_string(field.type) else value


def _schema(table: Path, columns: Decided) -> pa.Schema:
    """The table's own; of a text the scores are numbers. A decision that it lacks comes before `error`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = column_names(table)
    if table.suffix.lower() == ".parquet":
        schema = pq.read_schema(table)
    else:
        kinds = dict.fromkeys(score_columns(names), pa.float32()) | {"prediction": pa.int32()}
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    if columns.decision in names:
        return schema
    place = names.index("error") if "error" in names else len(names)
    return schema.insert(place, pa.field(columns.decision, pa.string()))


def _class_names(table: Path, columns: Decided) -> dict[int, str]:
    """The two classes' names, as the table pairs them with its decisions."""
    by = columns.prediction if columns.prediction in column_names(table) else columns.decision
    names: dict[int, str] = {}
    for batch in batches(table, [by, str(columns.class_name)]):
        for decision, name in zip(batch[by], batch[str(columns.class_name)], strict=True):
            if name and decision not in (None, ""):
                names.setdefault(int(str(decision) not in LOWEST), name)
        if len(names) == 2:
            break
    return names


def _score(table: Path, cell: Any, column: str) -> float | None:
    try:
        return None if cell == "" else score_from_cell(cell, column)
    except ValueError as error:
        raise TableError(f"{table}: {error}") from None


def _score_column(table: Path, names: list[str], head: str | None) -> str:
    scores = score_columns(names)
    if head is not None:
        if f"{head}_score" in names:
            return f"{head}_score"
        heads = ", ".join(name.removesuffix("_score") for name in scores) or "none"
        raise TableError(f"{table}: no column {head}_score; there are scores of: {heads}")
    if len(scores) != 1:
        heads = ", ".join(name.removesuffix("_score") for name in scores)
        problem = f"scores of several, {heads}; choose with --head" if scores else "no column of scores"
        raise TableError(f"{table}: {problem}")
    return scores[0]
