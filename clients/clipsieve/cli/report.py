"""`clipsieve report`: a table of scores as a page to look at."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import option
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
Out = Annotated[Path, option("--out/-o", "The page to write: .html.", group=_PAGE, metavar="FILE", show_default=True)]
ScoreName = Annotated[
    str | None,
    option(
        "--score",
        "The scores to begin with, e.g. nsfw or nsfw_score; by default the first. The page switches.",
        group=_PAGE,
        metavar="COLUMN",
    ),
]
Threshold = Annotated[
    float | None,
    option(
        "--threshold",
        "Where the threshold stands at first; by default where the table's decisions change, else in the middle.",
        group=_PAGE,
        callback=finite,
    ),
]
ClassNames = Annotated[
    str | None,
    option(
        "--class-names",
        "What marks are called in the exported labels; by default as in the table.",
        group=_PAGE,
        metavar="NEGATIVE,POSITIVE",
    ),
]
Order = Annotated[
    OrderName,
    option("--order", "Which pictures to take when there are more than --limit.", group=_PICTURES, show_default=True),
]
Limit = Annotated[
    int,
    option(
        "--limit", "Most pictures in the page; its counts are of all rows.", group=_PICTURES, min=1, show_default=True
    ),
]
Images = Annotated[
    Path,
    option(
        "--images",
        "Where the table's relative paths start from; by default here.",
        group=_PICTURES,
        metavar="FOLDER",
    ),
]
ThumbnailSize = Annotated[
    int, option("--thumbnail-size", "Longer side in pixels.", group=_PICTURES, min=16, max=1024, show_default=True)
]
LinkImages = Annotated[
    bool,
    option(
        "--link-images",
        "Refer to the files where they are: a smaller page, which does not travel without them.",
        group=_PICTURES,
    ),
]
Quiet = Annotated[bool, option("--quiet/-q", "No progress bar and no summary.", group=_RUN)]
Overwrite = Annotated[bool, option("--overwrite", "Replace the page if it exists.", group=_RUN)]


def report(
    table: Table,
    out: Out = Path("report.html"),
    score: ScoreName = None,
    threshold: Threshold = None,
    class_names: ClassNames = None,
    order: Order = OrderName.highest,
    limit: Limit = 5000,
    images: Images = Path(),
    thumbnail_size: ThumbnailSize = 128,
    link_images: LinkImages = False,
    quiet: Quiet = False,
    overwrite: Overwrite = False,
) -> None:
    """Make one HTML page of a table of scores: pictures, histogram, threshold, errors, and marks to export.

    Pictures are blurred until they are asked for. Exit status: 0 the page was written, 1 failure, 2 usage.
    """
    names = _two_names(class_names)
    options = ReportOptions(score, threshold, order.value, limit, names, images, thumbnail_size, link_images, overwrite)
    reporter = Reporter(quiet)
    with exits(reporter):
        summary = write_report(table, out, options, show_progress=not quiet and sys.stderr.isatty())
    reporter.tell(f"{out}: {summary}", "finished")
