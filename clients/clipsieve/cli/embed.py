"""`clipsieve embed`"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import SOME_FAILED, InputOptions, Paths, RunOptions, ServerOptions, exits
from clipsieve.cli.run import Rows, Work, identity_of, image_summary, looked_at, run_over_inputs, taken
from clipsieve.client import AsyncClient
from clipsieve.inputs import Inputs
from clipsieve.outputs import EMBEDDING_SUFFIXES, check_place
from clipsieve.partial import PartialRun, check_free
from clipsieve.progress import Reporter
from clipsieve.scoring import Item, embedding_schema, stream_embeddings

_COMMIT_ROWS = 1024


@dataclass
class EmbeddingOutput:
    out: Annotated[
        Path,
        option(
            "--out/-o",
            "File to write: .npy (one row per image in the order given, NaN where it failed) or .parquet "
            "(image_path, embedding, error). A run that is killed goes on when it is started again.",
            group="Output",
            metavar="FILE",
        ),
    ]


@grouped
def embed(paths: Paths, output: EmbeddingOutput, inputs: InputOptions, server: ServerOptions, run: RunOptions) -> None:
    """Compute the images' embeddings."""
    reporter = run.reporter(to_file=True)
    with exits(reporter):
        client = server.client(**run.asking())
        check_place(output.out, EMBEDDING_SUFFIXES)
        check_free(output.out, run.overwrite)
        failed = asyncio.run(_embed(client, inputs.inputs(paths), output.out, run.overwrite, reporter))
    if failed:
        raise typer.Exit(SOME_FAILED)


async def _embed(client: AsyncClient, inputs: Inputs, out: Path, overwrite: bool, reporter: Reporter) -> int:
    """Embed the images into the file; returns how many have no embedding."""
    candidates = looked_at(inputs)

    def rows(items: Iterator[Item], run: PartialRun) -> Rows:
        return stream_embeddings(client, items)

    work = Work(image_summary("embedded"), rows, limit=_COMMIT_ROWS)
    async with client:
        items = await taken(inputs, candidates, client)
        identity = identity_of(inputs, embed_dim=await client.embed_dim())
        with PartialRun(out, identity, embedding_schema(), overwrite) as run:
            return await run_over_inputs(run, items, work, reporter, inputs.passed_over)
