"""`clipsieve video`"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import SOME_FAILED, Format, RunOptions, ServerOptions, exits, finite
from clipsieve.cli.run import Rows, Work, identity_of, run_over_inputs, run_to_stdout
from clipsieve.cli.score import HeadOptions
from clipsieve.client import AsyncClient
from clipsieve.exceptions import InputRefused
from clipsieve.inputs import Inputs
from clipsieve.lists import is_list
from clipsieve.outputs import TABLE_SUFFIXES, check_place
from clipsieve.partial import PartialRun, check_free
from clipsieve.passed_over import PassedOver
from clipsieve.printing import printer
from clipsieve.progress import Reporter, Tally
from clipsieve.scoring import Item, Row, Versions
from clipsieve.video import VIDEO_SUFFIXES, check_installed, is_video
from clipsieve.video_rows import Sampling, VideoColumns, stream_videos

_FRAMES, _OUTPUT = "Frames", "Output"
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Aggregate(str, Enum):
    max = "max"
    mean = "mean"


def seconds_from_text(text: str) -> float:
    """`500ms`, `1s`, `2.5`, `1m` → seconds.

    Raises:
        ValueError: something else, or no time at all.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not seconds > 0:
        raise ValueError(f"{text!r} is no duration above 0; write 500ms, 1s, 2.5 or 1m")
    return seconds


Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="Video files; folders, searched recursively for " + ", ".join(sorted(VIDEO_SUFFIXES)) + "; patterns; "
        "lists of paths (.csv, .parquet, .jsonl); - for a list on stdin.",
        show_default=False,
    ),
]


@dataclass
class FrameOptions:
    """Which frames are looked at, and how their scores become one."""

    every: Annotated[
        str,
        option(
            "--every",
            "Time from one frame to the next that is scored: 500ms, 1s, 1m.",
            group=_FRAMES,
            metavar="DURATION",
            show_default=True,
        ),
    ] = "1s"
    aggregate: Annotated[
        Aggregate,
        option(
            "--aggregate", "A video's score: the highest of its frames, or their mean.", group=_FRAMES,
            show_default=True,
        ),
    ] = Aggregate.max  # fmt: skip
    stop_at: Annotated[
        float | None,
        option(
            "--stop-at",
            "Go on to the next video when a frame's score is this or more; of several scores the first counts.",
            group=_FRAMES,
            metavar="SCORE",
            callback=finite,
        ),
    ] = None
    max_frames: Annotated[
        int | None,
        option(
            "--max-frames",
            "Most frames of one video; a longer one is sampled less often.",
            group=_FRAMES,
            metavar="N",
            min=1,
        ),
    ] = None

    def sampling(self) -> Sampling:
        try:
            every_s = seconds_from_text(self.every)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--every") from None
        try:
            return Sampling(every_s, self.max_frames, self.aggregate.value, self.stop_at)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--stop-at") from None


@dataclass
class VideoOutput:
    """The place of the rows."""

    out: Annotated[
        Path | None,
        option(
            "--out/-o",
            "Table to write: .csv, .json, .jsonl or .parquet. A run that is killed goes on when it is started again. "
            "By default rows go to stdout.",
            group=_OUTPUT,
            metavar="FILE",
        ),
    ] = None
    format: Annotated[
        Format,
        option("--format", "Of the rows on stdout; a file's suffix says its own.", group=_OUTPUT, show_default=True),
    ] = Format.csv


@grouped
def video(
    paths: Videos, frames: FrameOptions, heads: HeadOptions, output: VideoOutput, server: ServerOptions,
    run: RunOptions,
) -> None:  # fmt: skip
    """Score videos: a frame a second of each, and one row with the highest scores and when they were.

    A video that is damaged is a row with an error, the scores of what could be read, and no decision. Needs
    pip install 'clipsieve[video]'.
    """
    reporter = run.reporter(output.out is not None)
    sampling = frames.sampling()
    with exits(reporter):
        check_installed()
        client = server.client(**run.asking())
        job = _Job(paths, sampling, heads, run, reporter)
        if output.out is None:
            failed = asyncio.run(job.to_stdout(client, output.format))
        else:
            failed = asyncio.run(job.to_file(client, output.out))
    if failed:
        raise typer.Exit(SOME_FAILED)


def videos_in(paths: list[str], passed_over: PassedOver) -> Iterator[str]:
    """The paths of videos, in the order given. Files that are named are taken whatever their suffix.

    Args:
        passed_over: counts what folders hold besides.

    A path that a spreadsheet would take for a formula gets `./` before it, which names the same file.

    Raises:
        InputRefused: a list cannot be read, or a pattern matches nothing.
    """
    for path in paths:
        named = path == "-" or is_list(path) or not os.path.isdir(path)
        for file in Inputs((path,), "*"):
            if named or is_video(file) or os.path.isdir(file):  # a folder here is one that cannot be listed
                yield f"./{file}" if file.startswith(_FORMULA_STARTS) else file
            else:
                passed_over.add(passed_over.kind_of(os.path.basename(file), None))


def _started(paths: list[str], passed_over: PassedOver) -> Iterator[Item]:
    """The videos, once the first of them is found. Raises InputRefused, also when there is none."""
    videos = ((path, path) for path in videos_in(paths, passed_over))
    for first in videos:
        return chain([first], videos)
    raise InputRefused(f"nothing to do: no file with the suffix of a video in {', '.join(paths)}")


@dataclass
class _Job:
    """One call of the command; `to_file` and `to_stdout` return how many videos have an error."""

    paths: list[str]
    sampling: Sampling
    heads: HeadOptions
    run: RunOptions
    reporter: Reporter
    frames: int = 0
    """Frames scored so far."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Counts of what the folders hold besides."""

    async def to_file(self, client: AsyncClient, out: Path) -> int:
        check_place(out, TABLE_SUFFIXES)
        check_free(out, self.run.overwrite)
        videos = _started(self.paths, self.passed_over)
        async with client:
            columns = await self._columns(client)
            with PartialRun(out, self._identity(), columns.schema(), self.run.overwrite) as run:
                return await run_over_inputs(run, videos, self._work(client, columns), self.reporter, self.passed_over)

    async def to_stdout(self, client: AsyncClient, form: Format) -> int:
        videos = _started(self.paths, self.passed_over)
        async with client:
            columns = await self._columns(client)
            rows = self._rows(client, (path for path, _ in videos), columns, Versions(None, False))

            async def show(rows: Rows) -> None:
                await _print(rows, columns.names, form)

            return await run_to_stdout(rows, columns.names, show, self._summary, self.reporter, self.passed_over)

    async def _columns(self, client: AsyncClient) -> VideoColumns:
        heads = await client.chosen_heads(self.heads.head or None)
        scores = self.heads.columns(heads, "video_path", self.reporter)
        if self.sampling.stop_at is not None and len(scores.score_names) > 1:
            self.reporter.say(f"what stops a video is {scores.score_names[0]}; --head puts another first")
        return VideoColumns(scores, self.sampling.how)

    def _identity(self) -> dict[str, object]:
        inputs = Inputs(tuple(self.paths), "videos")
        return identity_of(inputs, **asdict(self.sampling), **asdict(self.heads))

    def _work(self, client: AsyncClient, columns: VideoColumns) -> Work:
        versions = Versions(None, False)

        def rows(items: Iterator[Item], run: PartialRun) -> Rows:
            versions.check(run.last("model_version") or "")
            return self._rows(client, (path for path, _ in items), columns, versions)

        return Work(self._summary, rows)

    async def _rows(
        self, client: AsyncClient, videos: Iterator[str], columns: VideoColumns, versions: Versions
    ) -> Rows:
        place = columns.names.index("frames")
        async with aclosing(stream_videos(client, videos, columns, self.sampling, versions)) as rows:
            async for row in rows:
                self.frames += row[place]
                yield row

    def _summary(self, tally: Tally) -> tuple[str, dict[str, Any]]:
        seconds = tally.seconds
        codes = ", ".join(f"{code} {count}" for code, count in tally.failures.most_common())
        failed = f"{tally.failed} failed ({codes})" if tally.failed else "0 failed"
        kept = f"; {tally.kept} rows were there before" if tally.kept else ""
        rate = f"{self.frames} frames in {seconds:.1f} s: {self.frames / seconds:.1f} frames/s"
        figures = {"done": tally.done, "failed": tally.failed, "failures": dict(tally.failures), "kept": tally.kept}
        message = f"{tally.done - tally.failed} videos scored, {failed}; {rate}{kept}"
        return message, figures | {"frames": self.frames, "seconds": round(seconds, 3)}


async def _print(rows: Rows, names: Sequence[str], form: Format) -> None:
    """Print rows as they come, but those of the format `table` when all are there."""
    waiting: list[Row] = []
    with printer(names, form.value) as write:
        async with aclosing(rows):
            async for row in rows:
                waiting.append(row)
                if form is not Format.table:
                    write(waiting)
                    waiting = []
        if form is Format.table:
            write(waiting)
