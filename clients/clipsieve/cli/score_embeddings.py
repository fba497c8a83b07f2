"""`clipsieve score-embeddings`"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import SOME_FAILED, AllowVersionChange, RunOptions, ServerOptions, exits
from clipsieve.cli.run import Rows, Work, finish, publish_finished, run_to_file, tell_end
from clipsieve.cli.score import HeadOptions
from clipsieve.client import AsyncClient
from clipsieve.outputs import TABLE_SUFFIXES, check_place
from clipsieve.partial import PartialRun, check_free
from clipsieve.progress import Reporter, Tally
from clipsieve.scoring import Item, Versions

_OUTPUT = "Output"

Data = Annotated[
    Path,
    typer.Argument(
        metavar="PATH",
        help="A .npy, .npz or .parquet of embeddings, a folder of them, or clip-retrieval's folder with img_emb/ and "
        "metadata/.",
        show_default=False,
    ),
]


@dataclass
class ScoresOutput:
    out: Annotated[
        Path,
        option(
            "--out/-o",
            "Table to write, .parquet, .csv, .json or .jsonl: the columns of the metadata, if there is some, and "
            "those of the heads. A run that is killed goes on when it is started again.",
            group=_OUTPUT,
            metavar="FILE",
        ),
    ]
    allow_version_change: AllowVersionChange = False


@grouped
def score_embeddings(
    data: Data, heads: HeadOptions, output: ScoresOutput, server: ServerOptions, run: RunOptions
) -> None:
    """Score embeddings that exist already, without their images: a row for each, beside its metadata.

    They must come from the encoder that the server has. A row without one (NaN or zeros) is a row with an error.
    """
    reporter = run.reporter(to_file=True)
    with exits(reporter):
        client = server.client(**run.asking())
        check_place(output.out, TABLE_SUFFIXES)
        check_free(output.out, run.overwrite)
        failed = asyncio.run(_score(client, data, heads, output, run.overwrite, reporter))
    if failed:
        raise typer.Exit(SOME_FAILED)


async def _score(
    client: AsyncClient, data: Path, heads: HeadOptions, output: ScoresOutput, overwrite: bool, reporter: Reporter
) -> int:
    """Score the embeddings into the file; returns how many have no score."""
    from clipsieve.embedding_files import embedding_files
    from clipsieve.embedding_rows import KEY, EmbeddingColumns, stream_embedding_rows

    files = embedding_files(data)
    async with client:
        chosen = await client.chosen_heads(heads.head or None)
        table = EmbeddingColumns.of(files, heads.columns(chosen, KEY, reporter))
        if table.replaced:
            reporter.tell(f"columns of an earlier run are written anew: {', '.join(table.replaced)}", "replaced")
        versions = Versions(None, output.allow_version_change)

        def rows(items: Iterator[Item], run: PartialRun) -> Rows:
            versions.check(run.last("model_version") or "")
            return stream_embedding_rows(client, files, table, versions, skip=run.rows)

        identity = {"inputs": str(data), "rows": sum(map(len, files)), **asdict(heads)}
        with PartialRun(output.out, identity, table.schema(), overwrite) as run:
            if run.finished is not None:
                return publish_finished(run, run.finished, reporter)
            work = Work(_summary, rows)
            tally = await run_to_file(run, iter(()), work, reporter)
            failed = finish(run, work)
            tell_end(work.summary, tally, reporter)
            return failed


def _summary(tally: Tally) -> tuple[str, dict[str, object]]:
    return tally.summary("embeddings scored", "rows"), tally.figures()
