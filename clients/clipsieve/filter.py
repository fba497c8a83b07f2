"""Keeps the samples whose scores are wanted: their names, or new shards with their bytes.

A row's score is compared in float32, as the server compares it: a score written as 0.3 is at least 0.3. Conditions
are numbers and names, never expressions. A row with an error, or without a finite score, is dropped unless errors
are kept.

A new shard holds every member of the kept samples (image, json, text) and nothing else, in the old order. Headers
and contents are copied as bytes, so times, modes and owners stay; the old shard is only read.
"""

from __future__ import annotations

import ctypes
import glob
import gzip
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from clipsieve._exceptions import ClipsieveError
from clipsieve.paths import text_from_path
from clipsieve.score_columns import score_from_cell
from clipsieve.shards import SHARD_SUFFIXES, Layout, ShardError, Span, layout_of, open_forwards
from clipsieve.table_batches import Batch, batches, column_names

_NAMES = ("key", "image_path", "video_path")
_BANDS = frozenset({"allow", "review", "block"})
_CONDITION_FILE = "filter.json"
_CHUNK = 1 << 20
_END_BYTES = 1024  # two empty blocks, and then zeros to a multiple of the record
_RECORD_BYTES = 10_240


class FilterError(ClipsieveError):
    """The tables, the shards and what is wanted do not fit together; the message names them."""


@dataclass(frozen=True)
class Wanted:
    """Which rows stay: those that meet every condition given."""

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
    """What a table says about one sample."""

    name: str
    """Its key or path, as the table has it (see `clipsieve.paths`)."""
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
    """What became of the rows."""

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


def columns_of(table: Path, wanted: Wanted, head: str | None = None, column: str | None = None) -> Columns:
    """Finds the columns that `wanted` needs.

    Args:
        head: takes `<head>_score`, `<head>_decision`, `<head>_band` and `<head>_class_name`.
        column: takes this column for the score; by default the head's, or the only one.

    Raises:
        TableError, FilterError: a column that is needed is missing or not the only one; lists those there are.
    """
    names = column_names(table)
    score = _score_column(table, names, head, column, wanted.needs_score)
    head = head or (score or "").removesuffix("_score")
    plain = score == "probability"
    decision = _first(names, f"{head}_decision", "prediction" if plain else "")
    titles = (f"{head}_band", f"{head}_class_name", *(("band", "class_name") if plain else ()))
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


def columns_of_all(tables: Sequence[Path], wanted: Wanted, head: str | None, column: str | None) -> list[Columns]:
    """`columns_of` each table; their names and scores must have the same columns, to go to one list."""
    found = [columns_of(table, wanted, head, column) for table in tables]
    for table, columns in zip(tables, found, strict=True):
        if (columns.name, columns.score) != (found[0].name, found[0].score):
            theirs = f"{columns.name}, {columns.score} but {tables[0]} {found[0].name}, {found[0].score}"
            raise FilterError(f"{table} has the columns {theirs}: filter them one by one")
    return found


def find_shard(table: Path, folder: Path | None = None) -> Path:
    """The shard whose scores a table holds: of the same stem, beside the table or in `folder`."""
    within = table.parent if folder is None else folder
    found = [path for suffix in SHARD_SUFFIXES if (path := within / f"{table.stem}{suffix}").exists()]
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}" if found else f"no {table.stem}.tar"
        raise FilterError(f"{table}: there is {what} in {within}; name the folder of its shard with --shards")
    return found[0]


def filter_shards(
    tables: Sequence[Path],
    wanted: Wanted,
    out: Path,
    *,
    head: str | None = None,
    column: str | None = None,
    shards: Path | None = None,
    overwrite: bool = False,
    tell: Callable[[Path, Tally], None] = lambda shard, tally: None,
) -> Tally:
    """Write for each table a shard of the old one's name into the folder `out`, each whole or not at all.

    Shards that are there already are kept: the same call again goes on where the last one stopped.

    Args:
        shards: the folder of the shards, by default each table's own.
        overwrite: write all of them again.
        tell: called after each shard.

    Raises:
        TableError, ShardError, FilterError: a table is another shard's, or `out` holds what was filtered otherwise.
    """
    pairs = [(table, find_shard(table, shards)) for table in tables]
    _check_targets(pairs, out)
    columns = columns_of_all(tables, wanted, head, column)
    _check_condition(out, {"wanted": asdict(wanted), "columns": asdict(columns[0])}, overwrite)
    tally = Tally()
    for (table, shard), found in zip(pairs, columns, strict=True):
        target = out / shard.name
        if not overwrite and _is_finished(target, table, shard):
            tally.finished += 1
        else:
            filter_shard(table, found, wanted, shard, target, tally)
        tell(target, tally)
    return tally


def filter_shard(table: Path, columns: Columns, wanted: Wanted, shard: Path, target: Path, tally: Tally) -> None:
    """Write the kept samples of one shard to `target`, which appears when it is whole."""
    layout = layout_of(shard)
    rows = list(read_rows(table, columns, wanted))
    spans = _match(table, rows, shard, layout)
    kept = [wanted.keeps(row) for row in rows]
    _check_plain(shard, [span for span, keep in zip(spans, kept, strict=True) if keep])
    ranges = [*layout.common]
    for row, span, keep in zip(rows, spans, kept, strict=True):
        tally.count(row, keep)
        ranges += [(member.start, member.end) for member in span.members if keep]
    with whole_file(target) as file:
        if shard.name.lower().endswith(".tar"):
            _copy(shard, ranges, file)
        else:
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                _copy(shard, ranges, packed)
    tally.shards += 1


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when all is written; what a killed run left is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _score_column(table: Path, names: list[str], head: str | None, column: str | None, needed: bool) -> str | None:
    if column is not None or head is not None:
        name = column or f"{head}_score"
        if name in names:
            return name
        if needed or column is not None:
            raise FilterError(f"{table}: no column {name}; there are: {', '.join(names)}")
        return None
    found = [name for name in names if name == "probability" or name.endswith("_score")]
    if len(found) != 1:
        what = f"several columns of scores, {', '.join(found)}" if found else "no column of scores"
        raise FilterError(f"{table}: {what}; choose with --head or --column. There are: {', '.join(names)}")
    return found[0]


def _check_bands(table: Path, wanted: Sequence[str], decision: str | None, bands: tuple[str, ...]) -> None:
    if wanted and decision is None and not bands:
        raise FilterError(f"{table}: no column of decisions, bands or classes for --band {wanted[0]}")
    unknown = [band for band in wanted if band not in _BANDS and not band.isdecimal()]
    if unknown and not bands:
        raise FilterError(f"{table}: unknown band {unknown[0]!r}: {decision} has allow, review, block or numbers")


def _row(batch: Batch, place: int, columns: Columns, wanted: Wanted) -> ScoreRow:
    def value(column: str | None) -> Any:
        found = batch[column][place] if column is not None else None
        return None if found == "" else found

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
    asked = next((band for band in wanted.bands if band in ("review", "block")), None)
    if asked is not None and bands.isdisjoint(_BANDS) and any(band.isdecimal() for band in bands):
        raise ValueError(
            f"{columns.decision} has numbers only, and 1 is block for a head with one threshold but review for one "
            f"with two: give --band 1 or --band 2 instead of --band {asked}"
        )


def _match(table: Path, rows: list[ScoreRow], shard: Path, layout: Layout) -> list[Span]:
    """The span of each row; a key that comes twice belongs to the rows in their order."""
    spans: dict[str, deque[Span]] = {}
    for span in layout.spans:
        spans.setdefault(text_from_path(span.key), deque()).append(span)
    counts = Counter(row.name for row in rows)
    missing = [key for key, found in spans.items() if counts[key] < len(found)]
    extra = [key for key, count in counts.items() if count > len(spans.get(key, ()))]
    if missing or extra:
        parts = [f"no row for {_some(missing)}"] if missing else []
        parts += [f"rows without a sample: {_some(extra)}"] if extra else []
        raise FilterError(f"{table} is not the table of {shard}: {'; '.join(parts)}")
    return [spans[row.name].popleft() for row in rows]


def _check_plain(shard: Path, spans: list[Span]) -> None:
    for member in (member for span in spans for member in span.members):
        if member.kind in ("a symbolic link", "a hard link"):
            raise FilterError(f"{shard}: {member.name!r} is {member.kind}; what it points to may not be kept")


def _copy(shard: Path, ranges: list[tuple[int, int]], target: BinaryIO | gzip.GzipFile) -> None:
    """Copy these bytes of the tar, in their order, and end the new one."""
    written = 0
    with open_forwards(shard) as source:
        for start, end in sorted(ranges):
            source.seek(start)
            while source.tell() < end:
                piece = source.read(min(_CHUNK, end - source.tell()))
                if not piece:
                    raise ShardError(shard, f"became shorter while it was copied, at byte {source.tell()}")
                target.write(piece)
                written += len(piece)
    target.write(bytes(_END_BYTES + -(written + _END_BYTES) % _RECORD_BYTES))


def _check_targets(pairs: list[tuple[Path, Path]], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FilterError(f"{out} is a file; new shards need a folder")
    taken: dict[str, Path] = {}
    for _, shard in pairs:
        if shard.name in taken:
            raise FilterError(f"{taken[shard.name]} and {shard} would both be written to {out / shard.name}")
        taken[shard.name] = shard
        if out.exists() and out.samefile(shard.parent):
            raise FilterError(f"{out} is the folder of {shard}, which would be replaced; give another --out")


def _check_condition(out: Path, condition: dict[str, Any], overwrite: bool) -> None:
    """Shards that were filtered otherwise must not be taken for finished."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / _CONDITION_FILE
    text = json.dumps(condition, indent=2) + "\n"
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        before = " ".join(path.read_text(encoding="utf-8").split())
        raise FilterError(f"{out} was filtered with {before}; give --overwrite, or another --out")
    with whole_file(path) as file:
        file.write(text.encode())


def _is_finished(target: Path, table: Path, shard: Path) -> bool:
    if not target.exists():
        return False
    newer = [source for source in (table, shard) if source.stat().st_mtime_ns > target.stat().st_mtime_ns]
    if newer:
        raise FilterError(f"{target} is older than {newer[0]}; give --overwrite to write it again")
    return True


def _first(names: list[str], *wanted: str) -> str | None:
    return next((name for name in wanted if name in names), None)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _float32(value: float) -> float:
    return ctypes.c_float(value).value
