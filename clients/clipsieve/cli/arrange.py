"""`clipsieve arrange`, and the same after `clipsieve score`: files in order of their scores, or linked into folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from clipsieve.arrange import Arranged, shown
from clipsieve.arrange_table import Source, read_scored, source_in
from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import SOME_FAILED, exits
from clipsieve.file_links import link
from clipsieve.file_times import touch, undo_touch
from clipsieve.progress import Reporter
from clipsieve.table_batches import SUFFIXES

_ARRANGE, _RUN = "Arranging the files", "Run"
_MOST_NAMED = 10

Table = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        envvar="CLIPSIEVE_TABLE",
        help=f"Scores of files, as `clipsieve score --out` writes them: {', '.join(SUFFIXES)}.",
        show_default=False,
    ),
]


@dataclass
class ArrangeOptions:
    """How the files of a finished table are arranged."""

    touch: Annotated[
        bool,
        option(
            "--touch",
            "Order the files by score through their times of modification: the highest score becomes the newest. "
            "The times before are kept beside the table; `clipsieve arrange TABLE --undo-touch` gives them back.",
            group=_ARRANGE,
        ),
    ] = False
    link: Annotated[
        Path | None,
        option(
            "--link",
            "Make symbolic links to the files in this folder's folders allow, review and block, or in one for each "
            "class. No file is moved, and nothing is replaced.",
            group=_ARRANGE,
            metavar="DIR",
        ),
    ] = None

    @property
    def chosen(self) -> bool:
        return self.touch or self.link is not None

    def check(self, source: Source) -> None:
        """Raises BadParameter for what could only fail."""
        if self.link is None:
            return
        if source.band is None:
            problem = f"nothing decides by {source.score}: there is no column of decisions or classes"
            raise typer.BadParameter(problem, param_hint="--link")
        if self.link.exists() and not self.link.is_dir():
            raise typer.BadParameter(f"{self.link} is not a folder", param_hint="--link")
        if not self.link.exists() and not self.link.parent.is_dir():
            raise typer.BadParameter(f"the folder {self.link.parent} does not exist", param_hint="--link")

    def check_outside(self, folders: Iterable[str]) -> None:
        """Raises BadParameter for links in a folder of images, which the next run would take for images."""
        if self.link is None:
            return
        place = Path(os.path.realpath(self.link))
        for folder in folders:
            if os.path.isdir(folder) and place.is_relative_to(os.path.realpath(folder)):
                problem = f"{self.link} is in {folder}, where the next run would score the links; name another folder"
                raise typer.BadParameter(problem, param_hint="--link")


@dataclass
class TableOptions(ArrangeOptions):
    """Options of `clipsieve arrange`: those, and what only a finished table needs."""

    undo_touch: Annotated[
        bool, option("--undo-touch", "Give the files the times back that they had before --touch.", group=_ARRANGE)
    ] = False
    head: Annotated[
        str | None,
        option(
            "--head",
            "Whose score counts: a head, or a label as <head>_<label>. By default the first score of the table.",
            group=_ARRANGE,
            metavar="NAME",
        ),
    ] = None
    reverse: Annotated[
        bool, option("--reverse", "With --touch, the lowest score becomes the newest.", group=_ARRANGE)
    ] = False
    dry_run: Annotated[bool, option("--dry-run/-n", "Only print what would be done, on stdout.", group=_RUN)] = False
    quiet: Annotated[bool, option("--quiet/-q", "No summary.", group=_RUN)] = False
    json_log: Annotated[bool, option("--json-log", "Messages on stderr as JSON lines.", group=_RUN)] = False


@grouped
def arrange(table: Table, options: TableOptions) -> None:
    """Order scored files by their times, or link them into a folder for each decision or class.

    Files without a score are left alone. Relative paths in the table start from the current folder. Exit status: 0
    done, 1 failure, 2 usage, 3 some files could not be arranged.
    """
    if options.undo_touch and options.chosen:
        raise typer.BadParameter("goes alone: give --touch or --link in another call", param_hint="--undo-touch")
    if not (options.undo_touch or options.chosen):
        raise typer.BadParameter("say what to do with --touch, --link DIR or --undo-touch", param_hint="--touch")
    if options.reverse and not options.touch:
        raise typer.BadParameter("is for the order of --touch", param_hint="--reverse")
    reporter = Reporter(options.quiet, options.json_log)
    with exits(reporter):
        if options.undo_touch:
            failed = _undo(table, options.dry_run, reporter)
        else:
            source = source_in(table, options.head)
            options.check(source)
            failed = arrange_files(table, source, options, reporter, options.dry_run, options.reverse)
    if failed:
        raise typer.Exit(SOME_FAILED)


def arrange_files(
    table: Path, source: Source, options: ArrangeOptions, reporter: Reporter, dry_run: bool = False,
    reverse: bool = False,
) -> int:  # fmt: skip
    """Do to the files of a table what the options say; returns how many could not be arranged.

    Raises:
        TableError, ArrangeError, UnknownHead: see `read_scored`, `touch` and `link`.
    """
    failed = 0
    if options.touch:
        if source.others:
            reporter.say(f"the files' order is that of {source.score}, not of {', '.join(source.others)}")
        done = touch(read_scored(table, source), record_of(table), dry_run=dry_run, reverse=reverse)
        failed += _report(done, f"touched by {source.score}", dry_run, reporter)
    if options.link is not None:
        if source.others:
            reporter.say(f"the links' folders are those of {source.band}")
        done = link(read_scored(table, source), options.link, dry_run=dry_run)
        failed += _report(done, f"linked into {options.link} by {source.band}", dry_run, reporter)
        for name in done.elsewhere[:_MOST_NAMED]:
            reporter.say(f"of an earlier run, in another folder than now: {shown(str(options.link / name))}")
    return failed


def record_of(table: Path) -> Path:
    """The file with the times from before `--touch`, beside the table."""
    return table.with_name(f"{table.name}.times.json")


def _undo(table: Path, dry_run: bool, reporter: Reporter) -> int:
    record = record_of(table)
    if not record.exists():
        problem = f"there is no {record}, which --touch writes: nothing to undo"
        raise typer.BadParameter(problem, param_hint="--undo-touch")
    return _report(undo_touch(record, dry_run=dry_run), "old times given back", dry_run, reporter)


def _report(done: Arranged[Any], what: str, dry_run: bool, reporter: Reporter) -> int:
    """Print what was done; returns how many files could not be arranged."""
    if dry_run:
        for action in done.actions:
            print(action)
    for path, reason in done.failed[:_MOST_NAMED]:
        reporter.say(f"not arranged: {shown(path)}: {reason}", "error")
    if len(done.failed) > _MOST_NAMED:
        reporter.say(f"not arranged: {len(done.failed) - _MOST_NAMED} more", "error")
    if done.failed and not (done.actions or done.already):
        reporter.say("relative paths in the table start from the folder where `clipsieve score` ran")
    figures = {"arranged": len(done.actions), "already": done.already, "failed": len(done.failed)}
    reporter.tell(f"{'would be ' if dry_run else ''}{what}: {done}", "arranged", **figures)
    return len(done.failed)
