"""One run over inputs, of `score`, `embed` and `video`: into a file that a killed run goes on with, or onto stdout.

A run gives back how many of its rows have an error; the command makes an exit status of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Any, BinaryIO

from clipsieve.client import AsyncClient
from clipsieve.commits import commit_rows, committed_names, failed_rows
from clipsieve.exceptions import InputRefused, ShardError
from clipsieve.inputs import MORE_SUFFIXES, Inputs
from clipsieve.outputs import write_table
from clipsieve.partial import PartialRun
from clipsieve.passed_over import PassedOver
from clipsieve.progress import Reporter, Tally
from clipsieve.resume import Done
from clipsieve.run_record import RunRecord, ScoreFacts, write_record
from clipsieve.scoring import Item, Row

_LONGEST_SHOWN = 200

Sort = Callable[[Iterator[Any]], Iterator[Any]]
Rows = AsyncGenerator[Row, None]
Summary = Callable[[Tally], tuple[str, dict[str, Any]]]
"""The last line of a run, and its figures for machines."""


def image_summary(verb: str) -> Summary:
    """Make the summary of a run over images; `verb` says what happened to each, such as `scored`."""
    return lambda tally: (tally.summary(verb), tally.figures())


@dataclass(frozen=True)
class Work:
    """The work of a run on each of its inputs.

    Args:
        summary: makes the last line.
        rows: from items to rows; gets the run, which knows the inputs of the rows before.
        sort: puts the finished tables in order.
        limit: the most rows in memory, where they are large.
        scores: facts of the columns of scores, which are kept beside a file.
    """

    summary: Summary
    rows: Callable[[Iterator[Item], PartialRun], Rows]
    sort: Sort = iter
    limit: int | None = None
    scores: Mapping[str, ScoreFacts] | None = None


async def run_to_file(run: PartialRun, items: Iterator[Item], work: Work, reporter: Reporter) -> Tally:
    """Do what is left of a run and commit it.

    Raises:
        ClipsieveError, OSError: what ended the run; rows that were done are committed and reported.
    """
    tally = Tally(run.rows)
    if tally.kept:
        reporter.tell(f"{run.out}: going on after {tally.kept} rows", "resume", kept=tally.kept)
    try:
        with reporter.watching(tally) as advance:
            await commit_rows(work.rows(items, run), run, tally, advance, work.limit)
    except ShardError:
        raise  # of a shard that cannot be read to its end nothing is kept
    except BaseException:
        reporter.say(f"not finished: {run.rows} rows are kept in {run.folder}; the same command goes on", "kept")
        raise
    return tally


def finish(run: PartialRun, work: Work) -> int:
    """Write the output; how many of its rows have an error."""
    rows, failed = run.rows, failed_rows(run)

    def write(file: BinaryIO) -> None:
        write_table(file, run.out.suffix.lower(), work.sort(run.tables()), run.schema, rows)

    run.finish(write, {"rows": rows, "failed": failed})
    return failed


async def run_over_inputs(
    run: PartialRun, items: Iterator[Item], work: Work, reporter: Reporter, passed_over: PassedOver | None = None
) -> int:
    """A run whose rows are called by the names of its inputs; how many of them have an error."""
    if run.finished is not None:
        return publish_finished(run, run.finished, reporter)
    done = Done(committed_names(run))
    tally = await run_to_file(run, done.without(items), work, reporter)
    if done.left_over:
        reporter.say(f"rows kept from before of files that are no longer among the inputs: {done.left_over}")
    if work.scores is not None:
        write_record(run.out, RunRecord(work.scores, passed_over or PassedOver()))
    failed = finish(run, work)
    tell_end(work.summary, tally, reporter, passed_over)
    return failed


async def run_to_stdout(
    rows: Rows,
    names: Sequence[str],
    show: Callable[[Rows], Awaitable[None]],
    summary: Summary,
    reporter: Reporter,
    passed_over: PassedOver | None = None,
) -> int:
    """A run that keeps nothing; how many rows have an error.

    Args:
        names: of the rows' columns.
        show: prints the rows.
        passed_over: what the inputs leave out, once they were all given.
    """
    tally = Tally()
    with reporter.watching(tally) as advance:
        await show(_counted(rows, tally, advance, names.index("error")))
    tell_end(summary, tally, reporter, passed_over)
    return tally.failed


def publish_finished(run: PartialRun, finished: Mapping[str, Any], reporter: Reporter) -> int:
    """Move the output of a killed run to its place, when that was all that was left to do."""
    run.publish()
    reporter.say(f"{run.out}: all {finished.get('rows')} rows were there already")
    return int(finished.get("failed") or 0)


def tell_end(summary: Summary, tally: Tally, reporter: Reporter, passed_over: PassedOver | None = None) -> None:
    """Say what was done, and what the inputs held besides."""
    message, figures = summary(tally)
    if passed_over:
        figures |= {"passed_over": dict(passed_over)}
    reporter.tell(message, "end", **figures)
    if passed_over:
        reporter.tell(passed_over.summary(), "passed_over", counts=dict(passed_over))


async def _counted(rows: Rows, tally: Tally, advance: Callable[[], None], error_place: int) -> Rows:
    async with aclosing(rows):
        async for row in rows:
            tally.count(row[error_place])
            yield row
            advance()


def identity_of(inputs: Inputs, **options: object) -> dict[str, object]:
    """Options that must be the same to go on with an unfinished run."""
    named = json.dumps(inputs.paths)
    if len(named) > _LONGEST_SHOWN:
        named = f"{len(inputs.paths)} paths, sha256 {sha256(named.encode()).hexdigest()}"
    return {"inputs": named, "pattern": inputs.pattern, "column": inputs.column, **options}


def looked_at(inputs: Inputs) -> Iterator[Item] | None:
    """The inputs as `started` gives them; None where only a server that takes more formats may find some.

    Raises:
        InputRefused: there is none for any server.
    """
    try:
        return started(inputs)
    except InputRefused:
        if "-" in inputs.paths or next(inputs.taking(MORE_SUFFIXES).items(), None) is None:
            raise
        return None


async def taken(inputs: Inputs, items: Iterator[Item] | None, client: AsyncClient) -> Iterator[Item]:
    """The inputs in the formats of the server.

    Args:
        inputs: which the user named.
        items: what `looked_at` gave; a list on stdin is not read twice.

    Raises:
        InputRefused: there is none.
    """
    wider = inputs.taking(await client.formats())
    return items if items is not None and ("-" in inputs.paths or wider == inputs) else started(wider)


def started(inputs: Inputs) -> Iterator[Item]:
    """The inputs' names and images, once the first of them exists.

    Raises:
        InputRefused: there is none, or the list cannot be read: known before anything else is done.
    """
    items = inputs.items()
    for item in items:
        return chain([item], items)
    problem = f"no file matches {inputs.pattern!r}" if inputs.pattern else "no image files; see --pattern"
    passed_over = f" ({inputs.passed_over.summary()})" if inputs.passed_over else ""
    raise InputRefused(f"nothing to do: {problem}{passed_over}")
