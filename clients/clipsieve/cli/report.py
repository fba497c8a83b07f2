"""`clipsieve report`: a table of scores as a page to look at."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import exits, finite
from clipsieve.progress import Reporter
from clipsieve.report.page import ReportOptions, write_report
from clipsieve.table_batches import SUFFIXES

_PAGE, _PICTURES, _RUN = "Page", "Pictures", "Run"


class OrderName(str, Enum):
    highest = "highest"
    lowest = "lowest"
    near = "near"
    sample = "sample"


def _two_names(value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        problem = f"{value!r} is not two names; write them as NEGATIVE,POSITIVE"
        raise typer.BadParameter(problem, param_hint="--class-names")
    return names[0], names[1]


Table = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        envvar="CLIPSIEVE_TABLE",
        help=f"Scores as `clipsieve score` writes them: {', '.join(SUFFIXES)}.",
        show_default=False,
    ),
]


@dataclass
class PageOptions:
    """The page, and what it shows first."""

    out: Annotated[
        Path, option("--out/-o", "The page to write: .html.", group=_PAGE, metavar="FILE", show_default=True)
    ] = Path("report.html")
    head: Annotated[
        str | None,
        option(
            "--head",
            "Whose scores to begin with: a head, or a label as <head>_<label>; by default the first.",
            group=_PAGE,
            metavar="NAME",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            "Where the threshold stands at first; by default where the table's decisions change, else in the middle.",
            group=_PAGE,
            callback=finite,
        ),
    ] = None
    class_names: Annotated[
        str | None,
        option(
            "--class-names",
            "What marks are called in the exported labels; by default as in the table.",
            group=_PAGE,
            metavar="NEGATIVE,POSITIVE",
        ),
    ] = None


@dataclass
class PictureOptions:
    """Which pictures are in the page, and how."""

    order: Annotated[
        OrderName,
        option(
            "--order", "Which pictures to take when there are more than --limit.", group=_PICTURES, show_default=True
        ),
    ] = OrderName.highest
    limit: Annotated[
        int,
        option(
            "--limit",
            "Most pictures in the page; its counts are of all rows.",
            group=_PICTURES,
            min=1,
            show_default=True,
        ),
    ] = 5000
    images: Annotated[
        Path,
        option(
            "--images",
            "Where the table's relative paths start from; by default here.",
            group=_PICTURES,
            metavar="FOLDER",
        ),
    ] = Path()
    thumbnail_size: Annotated[
        int, option("--thumbnail-size", "Longer side in pixels.", group=_PICTURES, min=16, max=1024, show_default=True)
    ] = 128
    no_blur: Annotated[
        bool, option("--no-blur", "Show the pictures at once, not blurred until they are asked for.", group=_PICTURES)
    ] = False
    link_images: Annotated[
        bool,
        option(
            "--link-images",
            "Refer to the files where they are: a smaller page, which does not travel without them.",
            group=_PICTURES,
        ),
    ] = False


@dataclass
class RunOptions:
    """Options of printing, and of replacing a page."""

    quiet: Annotated[bool, option("--quiet/-q", "No progress bar and no summary.", group=_RUN)] = False
    overwrite: Annotated[bool, option("--overwrite", "Replace the page if it exists.", group=_RUN)] = False


@grouped
def report(table: Table, page: PageOptions, pictures: PictureOptions, run: RunOptions) -> None:
    """Make one HTML page of a table of scores: pictures, histogram, threshold, errors, and marks to export.

    Pictures are blurred until they are asked for, unless --no-blur is given. Exit status: 0 the page was written, 1
    failure, 2 usage.
    """
    options = ReportOptions(
        head=page.head,
        threshold=page.threshold,
        class_names=_two_names(page.class_names),
        order=pictures.order.value,
        limit=pictures.limit,
        images=pictures.images,
        thumbnail_size=pictures.thumbnail_size,
        blur=not pictures.no_blur,
        link_images=pictures.link_images,
        overwrite=run.overwrite,
    )
    reporter = Reporter(run.quiet)
    with exits(reporter):
        summary = write_report(table, page.out, options, show_progress=not run.quiet and sys.stderr.isatty())
    reporter.tell(f"{page.out}: {summary}", "finished")
