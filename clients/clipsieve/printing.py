"""Rows on stdout."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from clipsieve.outputs import ROW_WRITERS
from clipsieve.scoring import Row

if TYPE_CHECKING:
    from rich.console import Console

_VERSION, _ERROR = "model_version", "error"
_USUAL_PATH, _LEAST_PATH = 20, 12
"""Widths of the column of paths: for a narrower one the headers are folded first."""


@contextmanager
def printer(names: Sequence[str], form: str) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Yields the function that prints rows; each is on its way at once.

    Args:
        names: of the columns.
        form: csv, json, jsonl, or table for people.
    """
    if form == "table":
        yield lambda rows: print_scores(names, rows)
        return
    with closing(ROW_WRITERS[f".{form}"](sys.stdout.buffer, names)) as writer:

        def write(rows: Iterable[Row]) -> None:
            writer.write(rows)
            sys.stdout.buffer.flush()

        yield write
    sys.stdout.buffer.flush()


def print_scores(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table of scores, no wider than the terminal: paths are shortened in the middle.

    What is long stands once below it: the errors, of which a row has the code, and the versions.
    """
    from rich.console import Console

    console = Console()
    listed = [dict(zip(names, map(_shown, row), strict=True)) for row in rows]
    versions = Counter(version for row in listed if (version := row.pop(_VERSION, "")))
    errors = [(row[names[0]], error) for row in listed if (error := row.get(_ERROR))]
    for row in listed:
        row[_ERROR] = row.get(_ERROR, "").partition(":")[0]
    columns = [name for name in names if name != _VERSION and (not listed or any(row[name] for row in listed))]
    headers = {name: name for name in columns}
    room = _room(console, columns, headers, listed)
    if room < 0:
        headers = {name: _folded(name, listed) for name in columns}
        room = _room(console, columns, headers, listed)
    width = max(_LEAST_PATH, _USUAL_PATH + room)
    cells = [[shortened(row[columns[0]], width), *(row[name] for name in columns[1:])] for row in listed]
    _print(console, [headers[name] for name in columns], cells)
    for path, error in errors:
        console.print(f"{path}: {error}", markup=False, highlight=False, overflow="fold")
    for version, count in versions.most_common():
        of_rows = f" ({count} of the rows)" if len(versions) > 1 else ""
        console.print(f"{_VERSION}: {version}{of_rows}", markup=False, highlight=False, overflow="fold")


def print_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; those that hold nothing are left out."""
    from rich.console import Console

    listed = [["" if value is None else str(value) for value in row] for row in rows]
    shown = [place for place in range(len(names)) if not listed or any(row[place] for row in listed)]
    _print(Console(), [names[place] for place in shown], [[row[place] for place in shown] for row in listed])


def shortened(text: str, width: int) -> str:
    """The text with `…` in its middle where it is wider than that; the end, a file's name, keeps two thirds."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    end = text
    while cell_len(end) > (width - 1) * 2 // 3:
        end = end[1:]
    while cell_len(text) > width - 1 - cell_len(end):
        text = text[:-1]
    return f"{text}…{end}"


def _shown(value: object) -> str:
    """A cell: a number with four places, a text without what would move the cursor."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


def _room(console: Console, columns: list[str], headers: dict[str, str], rows: list[dict[str, str]]) -> int:
    """Width that is left when the paths have what they usually need."""
    widths = [_USUAL_PATH, *(_width(name, headers[name], rows) for name in columns[1:])]
    return console.width - 1 - sum(width + 3 for width in widths)


def _width(name: str, header: str, rows: list[dict[str, str]]) -> int:
    from rich.cells import cell_len

    return max([*map(len, header.split("\n")), *(cell_len(row[name]) for row in rows)])


def _folded(name: str, rows: list[dict[str, str]]) -> str:
    """A column's name on several lines, parted after `_`, no wider than its widest cell or part."""
    from rich.cells import cell_len

    parts = [f"{part}_" for part in name.split("_")]
    parts[-1] = parts[-1][:-1]
    width = max([*map(len, parts), *(cell_len(row[name]) for row in rows)])
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return "\n".join(lines)


def _print(console: Console, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a name is no markup
    console.print(table)
