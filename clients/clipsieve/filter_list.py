"""The names of the wanted samples, as text, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clipsieve.exceptions import FilterError
from clipsieve.filter import Columns, ScoreRow, Tally, Wanted, kept_rows
from clipsieve.filter_shards import whole_file
from clipsieve.paths import path_from_text

LIST_SUFFIXES = (".txt", ".csv", ".parquet")


def write_list(tables: list[Path], columns: list[Columns], wanted: Wanted, out: Path | None, separator: bytes) -> Tally:
    tally = Tally()
    pairs = zip(tables, columns, strict=True)
    rows = ((table, row) for table, table_columns in pairs for row in kept_rows(table, table_columns, wanted, tally))
    with _output(out) as file:
        if out is None or out.suffix.lower() == ".txt":
            _write_names((row for _, row in rows), file, separator)
        else:
            _write_table(rows, columns[0], file, out.suffix.lower())
    return tally


def _write_names(rows: Iterable[ScoreRow], out: BinaryIO, separator: bytes = b"\n") -> None:
    """The names as the file system has them, each followed by the separator: `\\n`, or NUL for `xargs -0`.

    Raises:
        FilterError: a name holds the separator.
    """
    for row in rows:
        name = os.fsencode(path_from_text(row.name))
        if separator in name or (separator == b"\n" and name.endswith(b"\r")):
            remedy = "use --null, or write .csv or .parquet"
            raise FilterError(f"{row.name!r} holds the character between two names: {remedy}")
        out.write(name + separator)


def _write_table(rows: Iterable[tuple[Path, ScoreRow]], columns: Columns, out: BinaryIO, suffix: str) -> None:
    """Name, score and error of each row, for keys also the shard; CSV or Parquet.

    Args:
        rows: with the table each one comes from.
        suffix: `.csv` or `.parquet`.
    """
    by_key = columns.name == "key"
    names = [columns.name, *(["shard"] if by_key else []), columns.score or "score", "error"]
    values = ((row.name, *([table.stem] if by_key else []), row.score, row.error) for table, row in rows)
    (_write_csv if suffix == ".csv" else _write_parquet)(names, values, out)


def _write_csv(names: list[str], rows: Iterable[tuple], out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    # Every text is quoted: before Python 3.13 the module leaves a lone \r as it is.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    csv.writer(text, lineterminator="\n").writerow(names)
    for row in rows:
        writer.writerow("" if value is None else value for value in row)
    text.detach()


def _write_parquet(names: list[str], rows: Iterable[tuple], out: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = names[-2]
    schema = pa.schema([(name, pa.float32() if name == numbers else pa.string()) for name in names])
    with pq.ParquetWriter(out, schema) as writer:
        for some in _batched(rows, 8192):
            columns = zip(*some, strict=True)
            arrays = [pa.array(list(values), field.type) for field, values in zip(schema, columns, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _batched(rows: Iterable[tuple], size: int) -> Iterator[list[tuple]]:
    some: list[tuple] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


@contextmanager
def _output(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(out) as file:
        yield file
