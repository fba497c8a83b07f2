"""The command line `clipsieve`: results on stdout or in a file, everything else on stderr.

Exit status: 0 everything was scored; 1 failure; 2 usage; 3 some images have no score; 5 server unavailable.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from clipsieve._exceptions import ClipsieveError, ServerUnavailable, UnknownHead
from clipsieve.bulk import Tally, progress_bar, write_results
from clipsieve.client import AsyncClient, Embedding, Head, Score
from clipsieve.inputs import find_images, paths_from_list
from clipsieve.outputs import (
    EMBEDDING_SUFFIXES,
    ROW_WRITERS,
    OutputRefused,
    check_output,
    embedding_writer,
    replacing,
    row_from_score,
)

FAILURE, SOME_FAILED, UNAVAILABLE = 1, 3, 5

app = typer.Typer(
    name="clipsieve",
    rich_markup_mode=None,  # plain text: boxes break long messages in logs
    help="Score images with a clipsieve server.",
    epilog="Exit status: 0 all scored, 1 failure, 2 usage, 3 some images have no score, 5 server unavailable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Protocol(str, Enum):
    grpc = "grpc"
    http = "http"


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Image files, folders (searched recursively), or - to read a list of paths from stdin, "
        "one a line or separated by NUL.",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="CLIPSIEVE_URL",
        metavar="HOST:PORT",
        help="Address of the server; by default localhost:8001, or localhost:8000 with http.",
        show_default=False,
    ),
]
ProtocolOption = Annotated[Protocol, typer.Option(envvar="CLIPSIEVE_PROTOCOL", help="How to talk to the server.")]
TimeoutOption = Annotated[
    float,
    typer.Option(
        envvar="CLIPSIEVE_TIMEOUT",
        metavar="SECONDS",
        min=0.01,
        max=86400,
        callback=_finite,
        help="Longest time to wait for one answer, retries included.",
    ),
]
ConcurrencyOption = Annotated[
    int,
    typer.Option(
        envvar="CLIPSIEVE_CONCURRENCY",
        min=1,
        max=4096,
        help="Images in flight at once; the server makes batches of them.",
    ),
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        envvar="CLIPSIEVE_PATTERN",
        metavar="GLOB",
        help="Take the files in folders whose name matches, instead of those with an image suffix. "
        "With a slash it is matched against the path inside the folder.",
        show_default=False,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar="CLIPSIEVE_QUIET", help="No progress bar and no summary."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", envvar="CLIPSIEVE_OVERWRITE", help="Replace the output file if it exists.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("clipsieve"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def score(
    paths: PathsArgument,
    url: UrlOption = None,
    protocol: ProtocolOption = Protocol.grpc,
    out: Annotated[
        Path | None,
        typer.Option(
            envvar="CLIPSIEVE_OUT",
            metavar="FILE",
            help="Table to write: .csv, .json, .jsonl or .parquet; by default CSV on stdout.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            envvar="CLIPSIEVE_HEAD",
            help="The classifier to ask, if the server has several; see `clipsieve heads`.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            envvar="CLIPSIEVE_THRESHOLD",
            min=0,
            max=1,
            callback=_finite,
            help="Predict class 1 at or above this probability, instead of at the head's own threshold.",
            show_default=False,
        ),
    ] = None,
    pattern: PatternOption = None,
    concurrency: ConcurrencyOption = 32,
    timeout: TimeoutOption = 30.0,
    quiet: QuietOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Score images: one row per image, in the order given."""
    _check_out(out, tuple(ROW_WRITERS), overwrite)
    client = _client(url, protocol, timeout, concurrency)
    files = _files(paths, pattern)

    async def run() -> Tally:
        async with client:
            chosen = await _binary_head(client, head)
            with _output(out) as file, closing(ROW_WRITERS[out.suffix.lower() if out else ".csv"](file)) as writer:

                def write(result: Score) -> None:
                    writer.write(row_from_score(result, chosen, threshold))
                    if out is None:
                        file.flush()

                stream = client.score_stream(files, chosen.name)
                return await _write_all(stream, files, Score, write, _bar_shown(out, quiet))

    _finish(run, "scored", quiet)


@app.command()
def embed(
    paths: PathsArgument,
    out: Annotated[
        Path,
        typer.Option(
            envvar="CLIPSIEVE_OUT",
            metavar="FILE",
            help="File to write: .npy (one row per image in the order given, NaN where it failed) or "
            ".parquet (image_path, embedding, error).",
            show_default=False,
        ),
    ],
    url: UrlOption = None,
    protocol: ProtocolOption = Protocol.grpc,
    pattern: PatternOption = None,
    concurrency: ConcurrencyOption = 32,
    timeout: TimeoutOption = 30.0,
    quiet: QuietOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compute the images' embeddings."""
    _check_out(out, EMBEDDING_SUFFIXES, overwrite)
    client = _client(url, protocol, timeout, concurrency)
    files = _files(paths, pattern)

    async def run() -> Tally:
        async with client:
            dim = await client.embed_dim()
            with (
                _output(out) as file,
                closing(embedding_writer(out.suffix.lower(), file, len(files), dim)) as writer,
            ):
                stream = client.embed_stream(files)
                return await _write_all(stream, files, Embedding, writer.write, _bar_shown(out, quiet))

    _finish(run, "embedded", quiet)


@app.command()
def heads(
    url: UrlOption = None,
    protocol: ProtocolOption = Protocol.grpc,
    timeout: TimeoutOption = 30.0,
    as_json: Annotated[bool, typer.Option("--json", envvar="CLIPSIEVE_JSON", help="Print a JSON array.")] = False,
) -> None:
    """List the classifiers the server offers."""
    client = _client(url, protocol, timeout)

    async def run() -> list[Head]:
        async with client:
            return await client.heads()

    with _exits():
        found = asyncio.run(run())
    if as_json:
        print(json.dumps([asdict(head) for head in found], indent=2))
    else:
        _print_table(found)


@app.command()
def health(
    url: UrlOption = None,
    protocol: ProtocolOption = Protocol.grpc,
    timeout: TimeoutOption = 5.0,
    shallow: Annotated[
        bool,
        typer.Option(
            "--shallow",
            envvar="CLIPSIEVE_SHALLOW",
            help="Only ask whether the server calls itself ready, which it does even when it cannot score.",
        ),
    ] = False,
) -> None:
    """Score a small image with every head; exit 0 if that works, 5 if nothing answers, 1 otherwise."""
    client = _client(url, protocol, timeout)

    async def run():
        async with client:
            return await client.health(deep=not shallow, timeout_s=timeout)

    with _exits():
        found = asyncio.run(run())
    if not found.ok:
        _fail(f"{found.status}: {found.message}", UNAVAILABLE if found.status == "unavailable" else FAILURE)
    print(f"{found.status}: {found.message}")


def main() -> None:
    app()


def _client(url: str | None, protocol: Protocol, timeout: float, concurrency: int = 1) -> AsyncClient:
    try:
        return AsyncClient(url, protocol.value, timeout, concurrency)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None


def _check_out(out: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    if out is None:
        return
    try:
        check_output(out, suffixes, overwrite)
    except OutputRefused as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None


def _files(paths: list[str], pattern: str | None) -> list[str]:
    named = [entry for path in paths for entry in (_stdin_paths() if path == "-" else [path])]
    files = find_images(named, pattern)
    if not files:
        wanted = f"no file matches {pattern!r}" if pattern else "no image files; name other suffixes with --pattern"
        raise typer.BadParameter(f"nothing to do: {wanted}", param_hint="PATH")
    return files


def _stdin_paths() -> list[str]:
    return paths_from_list(sys.stdin.buffer.read())


async def _binary_head(client: AsyncClient, name: str | None) -> Head:
    """The head to score with; its notice is printed, as the table cannot carry it."""
    try:
        head = await client.head(name)
    except UnknownHead as error:
        raise typer.BadParameter(str(error), param_hint="--head") from None
    if len(head.labels) > 1:
        problem = f"head {head.name!r} has {len(head.labels)} labels and the table one column; use the Python library"
        raise typer.BadParameter(problem, param_hint="--head")
    if head.notice:
        _say(f"notice: {head.notice}")
    return head


@contextmanager
def _output(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        return
    with replacing(out, lambda partial: _say(f"not finished: the rows so far are in {partial}")) as file:
        yield file


def _bar_shown(out: Path | None, quiet: bool) -> bool:
    """Never where it would mix with rows on the same terminal."""
    return not quiet and sys.stderr.isatty() and (out is not None or not sys.stdout.isatty())


async def _write_all(stream, files: list[str], result_type, write: Callable, shown: bool) -> Tally:
    tally = Tally()
    with progress_bar(len(files), shown) as advance:

        def write_and_advance(result) -> None:
            write(result)
            advance()

        await write_results(stream, files, result_type, write_and_advance, tally)
    return tally


def _finish(run: Callable, verb: str, quiet: bool) -> None:
    with _exits():
        tally: Tally = asyncio.run(run())
    if not quiet:
        _say(tally.summary(verb))
    if tally.unavailable:
        _fail(f"the server went away: {tally.unavailable}", UNAVAILABLE)
    if tally.failed:
        raise typer.Exit(SOME_FAILED)


@contextmanager
def _exits() -> Iterator[None]:
    """Exit status and one line on stderr for the errors that are nobody's bug."""
    try:
        yield
    except ServerUnavailable as error:
        _fail(f"server unavailable: {error}", UNAVAILABLE)
    except ClipsieveError as error:
        _fail(str(error), FAILURE)
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail(str(error), FAILURE)


def _fail(message: str, status: int) -> None:
    _say(f"clipsieve: {message}")
    raise typer.Exit(status)


def _print_table(found: list[Head]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("head", "labels", "classes", "notice")
    for head in found:
        table.add_row(head.name, ", ".join(head.labels), ", ".join(head.class_names), head.notice or "")
    Console().print(table)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
