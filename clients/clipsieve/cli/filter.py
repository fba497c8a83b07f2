"""`clipsieve filter`: which samples to keep, by their scores."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from clipsieve._exceptions import ClipsieveError
from clipsieve.filter import (
    Columns,
    FilterError,
    ScoreRow,
    Tally,
    Wanted,
    columns_of_all,
    filter_shards,
    kept_rows,
    whole_file,
)
from clipsieve.paths import path_from_text

LIST_SUFFIXES = (".txt", ".csv", ".parquet")

_FAILURE = 1


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def filter_command(
    scores: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCORES",
            help="Tables of scores: .parquet beside shards, or .parquet, .csv, .jsonl or .json of single files.",
            show_default=False,
        ),
    ],
    head: Annotated[
        str | None,
        typer.Option(envvar="CLIPSIEVE_HEAD", help="Take <head>_score and <head>_decision.", show_default=False),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            envvar="CLIPSIEVE_COLUMN", metavar="NAME", help="Take this column for the score.", show_default=False
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(
            envvar="CLIPSIEVE_AT_LEAST", callback=_finite, help="Keep scores at or above this.", show_default=False
        ),
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(envvar="CLIPSIEVE_BELOW", callback=_finite, help="Keep scores below this.", show_default=False),
    ] = None,
    band: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CLIPSIEVE_BAND",
            metavar="NAME",
            help="Keep this band: allow, a number of thresholds passed (0, 1, 2), or a name from the table's "
            "column of bands or classes. May be given several times.",
            show_default=False,
        ),
    ] = None,
    keep_errors: Annotated[
        bool,
        typer.Option(
            "--keep-errors", envvar="CLIPSIEVE_KEEP_ERRORS", help="Keep what has an error instead of a score."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            envvar="CLIPSIEVE_OUT",
            metavar="PATH",
            help="A list to write, .txt, .csv or .parquet, or a folder for new shards; by default names on stdout, "
            "one a line.",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            envvar="CLIPSIEVE_SHARDS",
            metavar="DIR",
            help="Where the shards are, if not beside their tables.",
            show_default=False,
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", envvar="CLIPSIEVE_NULL", help="End names with NUL instead of a new line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", envvar="CLIPSIEVE_QUIET", help="No summary.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", envvar="CLIPSIEVE_OVERWRITE", help="Replace the output if it exists.")
    ] = False,
) -> None:
    """Keep samples by their scores: a list of names, or new shards with the bytes of the kept samples.

    clipsieve filter shards/*.parquet --head nsfw --below 0.3 --out kept/

    Exit status: 0 done; 1 failure; 2 usage.
    """
    wanted = Wanted(at_least, below, tuple(band or ()), keep_errors)
    if not (wanted.needs_score or wanted.bands):
        raise typer.BadParameter("say what to keep with --below, --at-least or --band", param_hint="--below")
    _check_out(out, shards, null, overwrite)
    with _exits():
        if out is not None and not _is_list(out):
            tally = filter_shards(scores, wanted, out, head=head, column=column, shards=shards, overwrite=overwrite)
        else:
            columns = columns_of_all(scores, wanted, head, column)
            tally = _write_list(scores, columns, wanted, out, b"\0" if null else b"\n")
    if not quiet:
        print(tally, file=sys.stderr)


def _is_list(out: Path) -> bool:
    return out.suffix.lower() in LIST_SUFFIXES and not out.is_dir()


def _check_out(out: Path | None, shards: Path | None, null: bool, overwrite: bool) -> None:
    to_list = out is None or _is_list(out)
    if shards is not None and to_list:
        raise typer.BadParameter("is for new shards: give a folder to --out", param_hint="--shards")
    if null and not (out is None or out.suffix.lower() == ".txt"):
        raise typer.BadParameter("is for a list of names: on stdout or in a .txt", param_hint="--null")
    if out is None:
        return
    if to_list and out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} already exists; give --overwrite to replace it", param_hint="--out")
    if to_list and not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist", param_hint="--out")
    if not to_list and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is neither a folder nor a {', '.join(LIST_SUFFIXES)}", param_hint="--out")


def _write_list(
    tables: list[Path], columns: list[Columns], wanted: Wanted, out: Path | None, separator: bytes
) -> Tally:
    tally = Tally()
    pairs = zip(tables, columns, strict=True)
    rows = ((table, row) for table, found in pairs for row in kept_rows(table, found, wanted, tally))
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


@contextmanager
def _exits() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except (ClipsieveError, OSError) as error:
        print(f"clipsieve: {error}", file=sys.stderr)
        raise typer.Exit(_FAILURE) from None
