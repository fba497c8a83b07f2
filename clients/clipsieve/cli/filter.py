"""`clipsieve filter`: which samples to keep, by their scores."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import exits, finite
from clipsieve.exceptions import OutputRefused
from clipsieve.filter import Wanted, columns_of_all
from clipsieve.filter_list import LIST_SUFFIXES, write_list
from clipsieve.filter_shards import filter_shards
from clipsieve.joined import check_replaceable
from clipsieve.progress import Reporter

_SCORES, _KEEP, _OUTPUT = "Scores", "What to keep", "Output"

Tables = Annotated[
    list[Path],
    typer.Argument(
        metavar="SCORES",
        help="Tables of scores: .parquet beside shards, or .parquet, .csv, .jsonl or .json of single files.",
        show_default=False,
    ),
]


@dataclass
class ScoreOptions:
    """Options that choose the column of scores."""

    head: Annotated[
        str | None,
        option(
            "--head",
            "Whose score counts: a head, a label as <head>_<label>, or a column of numbers. By default the only score.",
            group=_SCORES,
            metavar="NAME",
        ),
    ] = None


@dataclass
class KeepOptions:
    """The conditions; a sample is kept that meets all of them."""

    at_least: Annotated[
        float | None, option("--at-least", "Keep scores at or above this.", group=_KEEP, callback=finite)
    ] = None
    below: Annotated[float | None, option("--below", "Keep scores below this.", group=_KEEP, callback=finite)] = None
    band: Annotated[
        list[str] | None,
        option(
            "--band",
            "Keep this band: allow, a number of thresholds passed (0, 1, 2), or a name from the table's column of "
            "bands or classes. May be given several times.",
            group=_KEEP,
            metavar="NAME",
        ),
    ] = None
    keep_errors: Annotated[bool, option("--keep-errors", "Keep what has an error instead of a score.", group=_KEEP)] = (
        False
    )

    def wanted(self) -> Wanted:
        wanted = Wanted(self.at_least, self.below, tuple(self.band or ()), self.keep_errors)
        if not (wanted.needs_score or wanted.bands):
            raise typer.BadParameter("say what to keep with --below, --at-least or --band", param_hint="--below")
        return wanted


@dataclass
class OutputOptions:
    """Options of the output."""

    out: Annotated[
        Path | None,
        option(
            "--out/-o",
            "A list to write, .txt, .csv or .parquet, or a folder for new shards; by default names on stdout, one a "
            "line.",
            group=_OUTPUT,
            metavar="PATH",
        ),
    ] = None
    shards: Annotated[
        Path | None,
        option("--shards", "Where the shards are, if not beside their tables.", group=_OUTPUT, metavar="DIR"),
    ] = None
    null: Annotated[bool, option("--null/-0", "End names with NUL instead of a new line.", group=_OUTPUT)] = False
    overwrite: Annotated[bool, option("--overwrite", "Replace the output if it exists.", group=_OUTPUT)] = False
    quiet: Annotated[bool, option("--quiet/-q", "No summary.", group=_OUTPUT)] = False

    @property
    def is_list(self) -> bool:
        return self.out is None or (self.out.suffix.lower() in LIST_SUFFIXES and not self.out.is_dir())

    def check(self) -> None:
        if self.shards is not None and self.is_list:
            raise typer.BadParameter("is for new shards: give a folder to --out", param_hint="--shards")
        if self.null and not (self.out is None or self.out.suffix.lower() == ".txt"):
            raise typer.BadParameter("is for a list of names: on stdout or in a .txt", param_hint="--null")
        if self.out is not None and (problem := self._problem(self.out)):
            raise typer.BadParameter(problem, param_hint="--out")

    def _problem(self, out: Path) -> str | None:
        if not self.is_list:
            suffixes = ", ".join(LIST_SUFFIXES)
            return f"{out} is neither a folder nor a {suffixes}" if out.exists() and not out.is_dir() else None
        if out.exists() and not self.overwrite:
            return f"{out} already exists; give --overwrite to replace it"
        try:
            check_replaceable(out)
        except OutputRefused as error:
            return str(error)
        return None if out.parent.is_dir() else f"the folder {out.parent} does not exist"


@grouped
def filter_command(scores: Tables, score: ScoreOptions, keep: KeepOptions, output: OutputOptions) -> None:
    """Keep samples by their scores: a list of names, or new shards with the bytes of the kept samples.

    clipsieve filter shards/*.parquet --head nsfw --below 0.3 --out kept/

    Exit status: 0 done, 1 failure, 2 usage: also tables that do not fit the options.
    """
    wanted = keep.wanted()
    output.check()
    with exits(Reporter(output.quiet)):
        if output.out is not None and not output.is_list:
            tally = filter_shards(
                scores,
                wanted,
                output.out,
                head=score.head,
                shards=output.shards,
                overwrite=output.overwrite,
            )
        else:
            columns = columns_of_all(scores, wanted, score.head)
            tally = write_list(scores, columns, wanted, output.out, b"\0" if output.null else b"\n")
    if not output.quiet:
        print(tally, file=sys.stderr)
