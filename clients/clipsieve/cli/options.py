"""The options that commands share, and what they are made into."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from clipsieve.cli.grouped import option
from clipsieve.client import AsyncClient
from clipsieve.exceptions import (
    ClipsieveError,
    InputRefused,
    OutputRefused,
    ServerUnavailable,
    UnknownHead,
    UnknownThreshold,
)
from clipsieve.inputs import Inputs
from clipsieve.progress import Reporter

FAILURE, USAGE, SOME_FAILED, UNAVAILABLE = 1, 2, 3, 5

_SERVER, _INPUTS, _RUN = "Server", "Inputs", "Run"


class Protocol(str, Enum):
    grpc = "grpc"
    http = "http"


class Priority(str, Enum):
    interactive = "interactive"
    bulk = "bulk"


class Format(str, Enum):
    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Image files; folders, searched recursively; patterns such as 'photos/**/*.png'; lists of paths "
        "(.csv, .parquet, .jsonl); - for a list on stdin, one path a line or separated by NUL; or only "
        "WebDataset shards (.tar, .tar.gz).",
        show_default=False,
    ),
]


Timeout = Annotated[
    float,
    option(
        "--timeout",
        "Longest time to wait for one answer, retries included.",
        group=_SERVER,
        metavar="SECONDS",
        min=0.01,
        max=86400,
        callback=finite,
        show_default=True,
    ),
]


AllowVersionChange = Annotated[
    bool,
    option(
        "--allow-version-change",
        "Go on when another version of a head answers than before; each row has its own in model_version.",
        group=_RUN,
    ),
]


@dataclass
class ServerOptions:
    """Options that reach the server."""

    url: Annotated[
        str | None,
        option(
            "--url",
            "Address of the server, also with grpc://, grpcs://, http:// or https:// before it; by default "
            "localhost:8001, or localhost:8000 with http. Several, with commas between them, share the work.",
            group=_SERVER,
            metavar="HOST:PORT",
        ),
    ] = None
    protocol: Annotated[
        Protocol | None,
        option("--protocol", "How to talk to it; by default what the address says, or grpc.", group=_SERVER),
    ] = None
    timeout: Timeout = 30.0
    tls: Annotated[bool, option("--tls", "Encrypt the connection; grpcs:// and https:// do too.", group=_SERVER)] = (
        False
    )
    ca_file: Annotated[
        Path | None,
        option("--ca-file", "PEM certificates to trust instead of the system's.", group=_SERVER, metavar="FILE"),
    ] = None
    token: Annotated[
        str | None,
        option(
            "--token",
            "Sent as 'authorization: Bearer TOKEN'. The variable is safer: other users can read arguments.",
            group=_SERVER,
            metavar="TOKEN",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        option("--header", "Sent with every request; may be repeated.", group=_SERVER, metavar="NAME:VALUE"),
    ] = None

    def client(self, **more: Any) -> AsyncClient:
        """Args: more: of `Settings`, what is not about the server."""
        try:
            return AsyncClient(
                self.url,
                self.protocol.value if self.protocol else None,
                self.timeout,
                **more,
                tls=self.tls,
                ca_file=self.ca_file,
                token=self.token,
                headers=dict(_header(each) for each in self.header or ()),
            )
        except ValueError as error:
            hint = "--url" if str(error).startswith("url ") else None
            raise typer.BadParameter(str(error), param_hint=hint) from None


@dataclass
class InputOptions:
    """Options that choose the files among those that were named."""

    pattern: Annotated[
        str | None,
        option(
            "--pattern",
            "Take the files in folders whose name matches, instead of those with an image suffix. With a slash it "
            "is matched against the path inside the folder.",
            group=_INPUTS,
            metavar="GLOB",
        ),
    ] = None
    path_column: Annotated[
        str | None,
        option(
            "--path-column",
            "Of lists, the column with the paths; by default image_path, path, file or filename.",
            group=_INPUTS,
            metavar="NAME",
        ),
    ] = None

    def inputs(self, paths: list[str]) -> Inputs:
        return Inputs(tuple(paths), self.pattern, self.path_column)


@dataclass
class RunOptions:
    """Options of a run over many images: resuming, and reporting."""

    concurrency: Annotated[
        int,
        option(
            "--concurrency",
            "Images in flight at once; the server makes batches of them.",
            group=_RUN,
            metavar="N",
            min=1,
            max=4096,
            show_default=True,
        ),
    ] = 32
    images_per_request: Annotated[
        int,
        option(
            "--images-per-request",
            "At most so many small images go together; one that cannot be scored still fails alone.",
            group=_RUN,
            metavar="N",
            min=1,
            max=4096,
            show_default=True,
        ),
    ] = 4
    priority: Annotated[
        Priority,
        option(
            "--priority", "With bulk the server takes up other clients' images first.", group=_RUN, show_default=True
        ),
    ] = Priority.bulk
    wait: Annotated[
        float,
        option(
            "--wait",
            "How long to wait, at the start or later, for a server that is gone, still loading or too busy.",
            group=_RUN,
            metavar="SECONDS",
            min=0,
            callback=finite,
            show_default=True,
        ),
    ] = 60.0
    overwrite: Annotated[
        bool,
        option("--overwrite", "Start anew: replace the output, and drop the rows of an unfinished run.", group=_RUN),
    ] = False
    quiet: Annotated[bool, option("--quiet/-q", "No progress and no summary.", group=_RUN)] = False
    json_log: Annotated[bool, option("--json-log", "Messages and progress on stderr as JSON lines.", group=_RUN)] = (
        False
    )

    def asking(self) -> dict[str, Any]:
        """Arguments for the client."""
        return {
            "concurrency": self.concurrency,
            "wait_s": self.wait,
            "images_per_request": self.images_per_request,
            "priority": self.priority.value,
        }

    def reporter(self, to_file: bool) -> Reporter:
        """Reporter with a progress bar, unless it would mix with rows on the same terminal."""
        bar = sys.stderr.isatty() and (to_file or not sys.stdout.isatty())
        return Reporter(self.quiet, self.json_log, bar)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"a header is NAME:VALUE, found {text!r}")
    return name.strip(), value.strip()


@contextmanager
def exits(reporter: Reporter) -> Iterator[None]:
    """Exit status and one line on stderr for the errors that are nobody's bug; warnings are lines there too."""
    try:
        with reporter.logged():
            yield
    except (InputRefused, OutputRefused, UnknownHead, UnknownThreshold) as error:
        fail(reporter, str(error), USAGE)
    except ServerUnavailable as error:
        fail(reporter, f"server unavailable: {error}", UNAVAILABLE)
    except ClipsieveError as error:
        fail(reporter, str(error), FAILURE)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(reporter, str(error) if error.filename else error.strerror or str(error), FAILURE)


def fail(reporter: Reporter, message: str, status: int) -> NoReturn:
    reporter.say(f"clipsieve: {message}", "error", status=status)
    raise typer.Exit(status)
