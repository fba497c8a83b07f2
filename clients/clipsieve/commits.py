"""Rows of a run, committed as they come: what is committed stays when the run is killed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from clipsieve.partial import PartialRun
from clipsieve.progress import Tally
from clipsieve.scoring import Row

COMMIT_EVERY_S = 2.0
"""A run that is killed does what came after its last commit again."""
COMMIT_ROWS = 8192


async def commit_rows(
    rows: AsyncGenerator[Row, None],
    run: PartialRun,
    tally: Tally,
    advance: Callable[[], None],
    limit: int | None = None,
) -> None:
    """Commit rows in parts, also those that came before an error or an interrupt.

    Args:
        advance: called after each row was counted.
        limit: the most rows in memory; by default COMMIT_ROWS.
    """
    limit = limit or COMMIT_ROWS
    error_place = run.schema.names.index("error")
    waiting: list[Row] = []
    committed_at = time.monotonic()
    try:
        async with aclosing(rows):
            async for row in rows:
                waiting.append(row)
                tally.count(row[error_place])
                advance()
                if len(waiting) >= limit or time.monotonic() - committed_at > COMMIT_EVERY_S:
                    full, waiting = waiting, []
                    run.commit(full)
                    committed_at = time.monotonic()
    finally:
        if waiting:
            run.commit(waiting)


def failed_rows(run: PartialRun) -> int:
    """Count the committed rows that have an error."""
    return sum(len(table) - table["error"].null_count for table in run.tables(["error"]))


def committed_names(run: PartialRun) -> Iterator[str]:
    """The first column of the committed rows, in their order."""
    for table in run.tables([run.schema.names[0]]):
        yield from table.column(0).to_pylist()
