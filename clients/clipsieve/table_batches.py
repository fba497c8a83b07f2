"""Reads a table by rows, or in batches of rows by column: Parquet, CSV, JSON lines or JSON.

Text is UTF-8, or UTF-16 where it begins with its mark, as Excel writes it. The fields of a CSV are parted by commas, or
by semicolons or tabs where the header then has more fields. A file that maps paths to labels may nest them:

    {"a.jpg": 6.5, …}                       {"a.jpg": [6.5, 12], "#meta#": {…}}   a score and its count of comparisons
    {"a.jpg": {"score": 6.5}, …}            {"ImageRecords": {"a.jpg": {"score": 6.5}}, "Metadata": {…}}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from clipsieve.arrow_paths import arrow_source
from clipsieve.exceptions import TableError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")

_BATCH_ROWS = 8192
_FIRST_CHARACTERS = 8192
_DELIMITERS = ",;\t"
_CSV = (".csv", ".tsv")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_WRAPPERS = ("ImageRecords", "scores", "images", "labels")
"""Keys under which files keep the object of paths, beside others about the file."""
_ABOUT_THE_FILE = ("#meta#",)

Batch = dict[str, list[Any]]
"""Some rows, by column."""
NumberedRow = tuple[int, dict[str, Any]]


def column_names(file: Path) -> list[str]:
    """
    Raises:
        TableError: no such file, it is damaged, or no table of a known kind.
    """
    kind = _kind(file)
    with _readable(file):
        return _parquet_names(file) if kind == ".parquet" else _csv_names(file) if kind in _CSV else _object_names(file)


def batches(file: Path, names: list[str]) -> Iterator[Batch]:
    """All rows, with these columns.

    Raises:
        TableError: the file is damaged.
    """
    if _kind(file) != ".parquet":
        yield from _row_batches(numbered_rows(file), names)
        return
    with _readable(file):
        yield from _parquet_batches(file, names)


def numbered_rows(file: Path, mapping: tuple[str, str] | None = None) -> Iterator[NumberedRow]:
    """All rows, each with the number by which a person finds it: in a CSV the header is row 1, of JSON lines the line.

    Args:
        mapping: names of the two columns that a JSON object stands for, such as `path` and `label` for
            `{"a.jpg": 1}`; without them such a file is refused.

    Raises:
        TableError: as for `column_names`, once the rows before were given.
    """
    kind = _kind(file)
    with _readable(file):
        if kind in _CSV:
            yield from _csv_rows(file)
        elif kind == ".parquet":
            yield from _parquet_rows(file)
        else:
            yield from _object_rows(file, mapping)


def json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line that is not empty, which need not be an object, with its number.

    Raises:
        TableError: as for `column_names`.
    """
    with _readable(file):
        yield from _lines(file)


def json_items(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the values of a JSON array, which need not be objects, with their numbers.

    Raises:
        TableError: as for `column_names`.
    """
    with _readable(file):
        yield from _items(file, None)


def csv_fields(file: Path, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of a CSV without a header, with its number.

    Raises:
        TableError: a row has not `width` fields; as for `column_names`.
    """
    with _readable(file), file.open(encoding=encoding_of(file), newline="") as text:
        for number, fields in enumerate(_csv_reader(text), start=1):
            if fields and len(fields) != width:
                raise TableError(f"{file}: row {number} does not have the first row's {width} fields")
            if fields:
                yield number, fields


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield each line that is not empty, or what lies between NULs if there are some, with its number.

    Raises:
        TableError: it cannot be read, or is no text.
    """
    with _readable(file), file.open(encoding=encoding_of(file), errors="surrogateescape", newline="") as text:
        first = text.read(_FIRST_CHARACTERS)
        text.seek(0)
        pieces = text.read().split("\0") if "\0" in first else (line.rstrip("\r\n") for line in text)
        yield from ((number, piece) for number, piece in enumerate(pieces, start=1) if piece)


def _kind(file: Path) -> str:
    kind = file.suffix.lower()
    if kind not in SUFFIXES:
        raise TableError(f"{file}: not a table that can be read; known: {', '.join(SUFFIXES)}")
    return kind


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        problem = f"not {error.encoding.upper()} text ({error.reason} at byte {error.start})"
        raise TableError(f"{file}: {problem}; save it as UTF-8") from error
    except UnicodeError as error:
        raise TableError(f"{file}: not UTF-16 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise TableError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, csv.Error, RecursionError) as error:
        raise TableError(f"{file}: not a readable {file.suffix.lower()[1:]} table: {error}") from error


def _parquet_names(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(arrow_source(file)) as parquet:
        return parquet.schema_arrow.names


def _parquet_batches(file: Path, names: list[str]) -> Iterator[Batch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(arrow_source(file)) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            yield batch.to_pydict()


def _csv_names(file: Path) -> list[str]:
    with file.open(encoding=encoding_of(file), newline="") as text:
        return next(_csv_reader(text), [])


def _csv_rows(file: Path) -> Iterator[NumberedRow]:
    with file.open(encoding=encoding_of(file), newline="") as text:
        reader = _csv_reader(text)
        names = next(reader, [])
        for number, fields in enumerate(reader, start=2):
            if not fields:
                continue  # an empty line
            if len(fields) != len(names):
                place = f"row {number} (line {reader.line_num})"
                raise TableError(f"{file}: {place} does not have the header's {len(names)} fields")
            yield number, dict(zip(names, fields, strict=True))


def _csv_reader(text: TextIO) -> Any:
    """A reader that parts fields by the character that gives the header the most; by commas where two do."""
    widths = {}
    for delimiter in _DELIMITERS:
        text.seek(0)
        try:
            widths[delimiter] = len(next(csv.reader(text, delimiter=delimiter, strict=True), []))
        except csv.Error:  # a quoted name, and behind it another delimiter
            widths[delimiter] = 0
    text.seek(0)
    return csv.reader(text, delimiter=max(_DELIMITERS, key=lambda delimiter: widths[delimiter]), strict=True)


def encoding_of(file: Path) -> str:
    """The encoding of a text, by its first two bytes."""
    with file.open("rb") as start:
        return "utf-16" if start.read(2) in _UTF16_MARKS else "utf-8-sig"


def _parquet_rows(file: Path) -> Iterator[NumberedRow]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(arrow_source(file)) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _object_rows(file: Path, mapping: tuple[str, str] | None = None) -> Iterator[NumberedRow]:
    for number, row in _lines(file) if file.suffix.lower() == ".jsonl" else _items(file, mapping):
        if not isinstance(row, dict):
            raise TableError(f"{file}: row {number} is {row!r:.60}, expected an object")
        yield number, row


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """The values of JSON lines, one at a time."""
    with file.open(
        encoding=encoding_of(file), newline="\n"
    ) as lines:  # JSON may hold U+2028 and others that end a text's line
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parsed(file, line, f" row {number}")


def _items(file: Path, mapping: tuple[str, str] | None) -> Iterator[tuple[int, Any]]:
    """The values of an array, which is read whole."""
    data = _parsed(file, file.read_text(encoding=encoding_of(file)), "")
    if mapping and isinstance(data, dict):
        data = _mapped(data, *mapping)
    if not isinstance(data, list):
        other = f", or an object of {': '.join(mapping)}" if mapping else ""
        raise TableError(f"{file}: expected an array of objects{other}")
    return enumerate(data, start=1)


def _mapped(data: dict[str, Any], path_name: str, label_name: str) -> Any:
    """The rows of an object of paths; an array that it wraps is given as it is."""
    wrapper = next((name for name in _WRAPPERS if isinstance(data.get(name), (dict, list))), None)
    if wrapper is not None:
        data = data[wrapper]
        if isinstance(data, list):
            return data
    rows = []
    for path, value in data.items():
        if path in _ABOUT_THE_FILE:
            continue
        if isinstance(value, dict):
            rows.append({**value, path_name: path})
        elif _is_score_and_count(value):
            rows.append({path_name: path, label_name: value[0], "comparisons": value[1]})
        else:
            rows.append({path_name: path, label_name: value})
    return rows


def _is_score_and_count(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(part) in (int, float) for part in value)


def _object_names(file: Path) -> list[str]:
    return list({name: None for _, row in _object_rows(file) for name in row})


def _row_batches(rows: Iterator[NumberedRow], names: list[str]) -> Iterator[Batch]:
    batch: Batch = {name: [] for name in names}
    for _, row in rows:
        for name in names:
            batch[name].append(row.get(name))
        if len(batch[names[0]]) >= _BATCH_ROWS:
            yield batch
            batch = {name: [] for name in names}
    yield batch


def _parsed(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise TableError(f"{file}:{where} not valid JSON: {error}") from error
