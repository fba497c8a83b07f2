"""What `score` and `embed` have in common: rows go into a file that a killed run can go on with."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Any, BinaryIO

import typer

from clipsieve.bulk import commit_rows, failed_rows, names_in
from clipsieve.cli.options import SOME_FAILED
from clipsieve.exceptions import InputRefused, ShardError
from clipsieve.inputs import Inputs
from clipsieve.outputs import write_table
from clipsieve.partial import PartialRun
from clipsieve.progress import Reporter, Tally
from clipsieve.resume import Done
from clipsieve.scoring import Item, Row

_LONGEST_SHOWN = 200

Arrange = Callable[[Iterator[Any]], Iterator[Any]]


@dataclass(frozen=True)
class Work:
    """What is done to each image of a run.

    Args:
        verb: what then happened to it: `scored`.
        rows: from items to rows; told the run, which knows what the rows before came from.
        arrange: puts the finished tables in order.
        limit: the most rows in memory, where they are large.
    """

    verb: str
    rows: Callable[[Iterator[Item], PartialRun], AsyncGenerator[Row, None]]
    arrange: Arrange = iter
    limit: int | None = None


async def run_to_file(run: PartialRun, items: Iterator[Item], work: Work, reporter: Reporter) -> Tally:
    """Do what is left of a run and commit it.

    Raises:
        ClipsieveError, OSError: what ended the run; what was done is committed and was told.
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
        write_table(file, run.out.suffix.lower(), work.arrange(run.tables()), run.schema, rows)

    run.finish(write, {"rows": rows, "failed": failed})
    return failed


async def run_over_inputs(run: PartialRun, inputs: Iterator[str], work: Work, reporter: Reporter) -> None:
    """A run whose rows are called by the paths of the images."""
    if run.finished is not None:
        publish_finished(run, reporter)
        return
    done = Done(names_in(run))
    items = ((path, path) for path in done.without(inputs))
    tally = await run_to_file(run, items, work, reporter)
    if done.left_over:
        reporter.say(f"rows kept from before of files that are no longer among the inputs: {done.left_over}")
    failed = finish(run, work)
    reporter.tell(tally.summary(work.verb), "end", **tally.figures())
    if failed:
        raise typer.Exit(SOME_FAILED)


def publish_finished(run: PartialRun, reporter: Reporter) -> None:
    """Of a process that was killed when all that was left was to move the output to its place."""
    told: Mapping[str, int] = run.finished or {}
    run.publish()
    reporter.say(f"{run.out}: all {told.get('rows')} rows were there already")
    if told.get("failed"):
        raise typer.Exit(SOME_FAILED)


def identity_of(inputs: Inputs, **options: object) -> dict[str, object]:
    """What a command must repeat to go on with an unfinished run."""
    named = json.dumps(inputs.paths)
    if len(named) > _LONGEST_SHOWN:
        named = f"{len(inputs.paths)} paths, sha256 {sha256(named.encode()).hexdigest()}"
    return {"inputs": named, "pattern": inputs.pattern, "column": inputs.column, **options}


def started(inputs: Inputs) -> Iterator[str]:
    """The paths, of which the first was found.

    Raises:
        InputRefused: there is none, or the list cannot be read: known before anything else is done.
    """
    paths = iter(inputs)
    for path in paths:
        return chain([path], paths)
    wanted = f"no file matches {inputs.pattern!r}" if inputs.pattern else "no image files; see --pattern"
    raise InputRefused(f"nothing to do: {wanted}")
