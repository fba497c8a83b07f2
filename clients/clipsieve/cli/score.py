"""`clipsieve score`"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from clipsieve.arrange_table import source_of
from clipsieve.cli.arrange import ArrangeOptions, arrange_files
from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import (
    SOME_FAILED,
    AllowVersionChange,
    Format,
    InputOptions,
    Paths,
    RunOptions,
    ServerOptions,
    exits,
    finite,
)
from clipsieve.cli.run import Rows, Work, identity_of, image_summary, looked_at, run_over_inputs, run_to_stdout, taken
from clipsieve.cli.shards import ShardJob, are_shards, score_shards, shards_in
from clipsieve.client import AsyncClient
from clipsieve.exceptions import OutputRefused
from clipsieve.inputs import Inputs
from clipsieve.outputs import TABLE_SUFFIXES, check_place, rows_from_table, table_from_rows
from clipsieve.partial import PartialRun, check_free
from clipsieve.printing import printer
from clipsieve.progress import Reporter
from clipsieve.results import Head
from clipsieve.run_record import score_facts
from clipsieve.scoring import Columns, Item, Versions, stream_rows
from clipsieve.sorting import Order, sort_column, sorted_tables

_HEADS, _OUTPUT = "Heads and decisions", "Output"
_TABLE_ROWS = 8192


@dataclass
class HeadOptions:
    """Which heads score, and where they decide."""

    head: Annotated[
        list[str] | None,
        option(
            "--head",
            "A classifier to score with; may be repeated. By default all that the server has, see `clipsieve heads`.",
            group=_HEADS,
            metavar="NAME",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            "For one binary head: predict its class at or above this score, instead of at the head's own threshold.",
            group=_HEADS,
            min=0,
            max=1,
            callback=finite,
        ),
    ] = None
    operating_point: Annotated[
        str | None,
        option(
            "--operating-point",
            "Decide by this one of each head's thresholds, such as 'recall>=0.99'; see `clipsieve heads`.",
            group=_HEADS,
            metavar="NAME",
        ),
    ] = None

    def columns(self, heads: Iterable[Head], key: str, reporter: Reporter) -> Columns:
        """The columns of a table by these heads. Says their notices, which the table cannot carry."""
        chosen = tuple(heads)
        for head in chosen:
            if head.notice:
                reporter.say(f"notice: {head.notice}")
        return Columns(chosen, self.threshold, self.operating_point, key)


@dataclass
class OutputOptions:
    """Where rows go, and in which order."""

    out: Annotated[
        Path | None,
        option(
            "--out/-o",
            "Table to write: .csv, .json, .jsonl or .parquet. A run that is killed goes on when it is started "
            "again. For shards, the folder for their tables. By default rows go to stdout.",
            group=_OUTPUT,
            metavar="FILE",
        ),
    ] = None
    format: Annotated[
        Format,
        option("--format", "Of the rows on stdout; a file's suffix says its own.", group=_OUTPUT, show_default=True),
    ] = Format.csv
    sort: Annotated[
        str | None,
        option(
            "--sort",
            "Order of the rows: score (highest first; of several the first column), path, or a column's name. "
            "By default that of the inputs.",
            group=_OUTPUT,
            metavar="COLUMN",
        ),
    ] = None
    top: Annotated[
        int | None,
        option("--top", "Only so many rows; the highest scores unless --sort says else.", group=_OUTPUT, min=1),
    ] = None
    reverse: Annotated[
        bool,
        option(
            "--reverse",
            "The other way round: the lowest score first (with --touch, newest). Rows without one stay last.",
            group=_OUTPUT,
        ),
    ] = False
    in_place: Annotated[
        bool,
        option(
            "--in-place",
            "For shards with a table beside them (key, url, caption, …): add the scores to it. The old one is kept as "
            "….parquet.bak.",
            group=_OUTPUT,
        ),
    ] = False
    allow_version_change: AllowVersionChange = False

    def order(self, columns: Columns) -> Order | None:
        """The order of the rows; None to leave them as they are."""
        if self.sort is None and self.top is None and not self.reverse:
            return None
        try:
            column = sort_column(columns.names, columns.score_names, self.sort or "score")
            return Order(column, self.top, self.reverse)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--sort") from None


@grouped
def score(
    paths: Paths, inputs: InputOptions, heads: HeadOptions, output: OutputOptions, arrange: ArrangeOptions,
    server: ServerOptions, run: RunOptions,
) -> None:  # fmt: skip
    """Score images: one row for each, in the order given. An image that cannot be scored is a row with an error.

    With one binary head the columns are image_path, probability, prediction, class_name, decision, error,
    model_version.
    Otherwise each head has columns that begin with its name.
    """
    reporter = run.reporter(output.out is not None)
    job = _Job(inputs.inputs(paths), heads, output, arrange, run, reporter)
    with exits(reporter):
        job.check()
        client = server.client(**run.asking())
        if are_shards(job.inputs):
            failed = asyncio.run(job.score_shards(client))
        elif output.out is None:
            failed = asyncio.run(job.score_to_stdout(client))
        else:
            failed = asyncio.run(job.score_to_file(client, output.out))
    if failed:
        raise typer.Exit(SOME_FAILED)


@dataclass(frozen=True)
class _Job:
    """One call of the command; each way of scoring gives back how many rows, files or shards failed."""

    inputs: Inputs
    heads: HeadOptions
    output: OutputOptions
    arrange: ArrangeOptions
    run: RunOptions
    reporter: Reporter

    def check(self) -> None:
        """Raises BadParameter for options that do not go together."""
        if self.output.in_place and (not are_shards(self.inputs) or self.output.out is not None):
            problem = "is for shards, whose tables lie beside them" if self.output.out is None else "goes without --out"
            raise typer.BadParameter(problem, param_hint="--in-place")
        self._check_arrange()

    def _check_arrange(self) -> None:
        """Raises BadParameter for files that cannot be arranged, whatever their scores."""
        if not self.arrange.chosen:
            return
        flag = "--touch" if self.arrange.touch else "--link"
        if are_shards(self.inputs):
            raise typer.BadParameter("is for files, and a shard's images are none", param_hint=flag)
        if self.output.out is None:
            raise typer.BadParameter("needs a table: give --out", param_hint=flag)
        self.arrange.check_outside(self.inputs.paths)

    async def score_to_file(self, client: AsyncClient, out: Path) -> int:
        check_place(out, TABLE_SUFFIXES)
        self._check_free(out)
        candidates = looked_at(self.inputs)
        async with client:
            columns = await self._columns(client)
            items = await taken(self.inputs, candidates, client)
            work = self._work(client, columns, self._versions())
            source = source_of(columns.names)
            self.arrange.check(source)
            with PartialRun(out, self._identity(), columns.schema(), self.run.overwrite) as run:
                failed = await run_over_inputs(run, items, work, self.reporter, self.inputs.passed_over)
        return failed + arrange_files(out, source, self.arrange, self.reporter, reverse=self.output.reverse)

    def _check_free(self, out: Path) -> None:
        try:
            check_free(out, self.run.overwrite)
        except OutputRefused as error:
            if not self.arrange.chosen:
                raise
            raise OutputRefused(f"{error}; to arrange the files of this table: clipsieve arrange {out}") from None

    async def score_to_stdout(self, client: AsyncClient) -> int:
        candidates = looked_at(self.inputs)
        async with client:
            columns = await self._columns(client)
            items = await taken(self.inputs, candidates, client)
            rows = stream_rows(client, items, columns, self._versions())

            async def show(rows: Rows) -> None:
                await self._print(rows, columns)

            summary, passed_over = image_summary("scored"), self.inputs.passed_over
            return await run_to_stdout(rows, columns.names, show, summary, self.reporter, passed_over)

    async def score_shards(self, client: AsyncClient) -> int:
        shards = shards_in(self.inputs)
        async with client:
            columns = await self._columns(client, key="key")
            versions = self._versions()
            job = ShardJob(
                columns, asdict(self.heads), versions, self._work(client, columns, versions), self.run.overwrite,
                self.reporter, self.output.in_place,
            )  # fmt: skip
            return await score_shards(shards, self.output.out, job)

    async def _columns(self, client: AsyncClient, key: str = "image_path") -> Columns:
        return self.heads.columns(await client.chosen_heads(self.heads.head or None), key, self.reporter)

    def _identity(self) -> dict[str, object]:
        return identity_of(self.inputs, **asdict(self.heads))

    def _versions(self) -> Versions:
        return Versions(None, self.output.allow_version_change)

    def _work(self, client: AsyncClient, columns: Columns, versions: Versions) -> Work:
        order = self.output.order(columns)

        def rows(items: Iterator[Item], run: PartialRun) -> Rows:
            versions.check(run.last("model_version") or "")
            return stream_rows(client, items, columns, versions)

        sort = (lambda tables: sorted_tables(tables, order)) if order else iter
        return Work(image_summary("scored"), rows, sort, scores=score_facts(columns))

    async def _print(self, rows: Rows, columns: Columns) -> None:
        """Rows as they come; those that have an order, or are a table to look at, when all are there."""
        order = self.output.order(columns)
        if order is None and self.output.format is not Format.table:
            with printer(columns.names, self.output.format.value) as write:
                async with aclosing(rows):
                    async for row in rows:
                        write([row])
            return
        tables = [table async for table in _tables(rows, columns, order)]
        with printer(columns.names, self.output.format.value) as write:
            for table in sorted_tables(tables, order) if order else tables:
                write(rows_from_table(table))


async def _tables(rows: Rows, columns: Columns, order: Order | None) -> AsyncGenerator[Any, None]:
    """Rows in Arrow tables; when only the first of an order are wanted, no more of them than that."""
    schema, waiting = columns.schema(), []
    best: list[Any] = []
    async with aclosing(rows):
        async for row in rows:
            waiting.append(row)
            if len(waiting) >= _TABLE_ROWS:
                best.append(table_from_rows(waiting, schema))
                waiting = []
                best = list(sorted_tables(best, order)) if order and order.top else best
    for table in [*best, table_from_rows(waiting, schema)]:
        yield table
