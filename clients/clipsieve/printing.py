"""Rows on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

from clipsieve.outputs import ROW_WRITERS
from clipsieve.scoring import Row


@contextmanager
def printer(names: Sequence[str], form: str) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Yields the function that prints rows; each is on its way at once.

    Args:
        names: of the columns.
        form: csv, json, jsonl, or table for people.
    """
    if form == "table":
        yield lambda rows: print_table(names, rows)
        return
    with closing(ROW_WRITERS[f".{form}"](sys.stdout.buffer, names)) as writer:

        def write(rows: Iterable[Row]) -> None:
            writer.write(rows)
            sys.stdout.buffer.flush()

        yield write
    sys.stdout.buffer.flush()


def print_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; those that hold nothing are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [["" if value is None else str(value) for value in row] for row in rows]
    shown = [place for place in range(len(names)) if not listed or any(row[place] for row in listed)]
    table = Table(box=SIMPLE_HEAD)
    for place in shown:
        table.add_column(names[place], overflow="fold")
    for row in listed:
        table.add_row(*(Text(row[place]) for place in shown))  # a name is no markup
    Console().print(table)
