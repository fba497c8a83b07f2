"""Scoring WebDataset shards: a Parquet for each, with the keys of its samples. The tars are only read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipsieve.cli.run import Work, finish, run_to_file
from clipsieve.commits import failed_rows
from clipsieve.exceptions import InputRefused, OutputRefused, ShardError
from clipsieve.inputs import Inputs
from clipsieve.partial import PartialRun, folder_of
from clipsieve.progress import Reporter
from clipsieve.scoring import Columns, Item, Versions
from clipsieve.shards import is_shard, iter_samples, scores_paths


def are_shards(inputs: Inputs) -> bool:
    """True when shards were named.

    Raises:
        InputRefused: shards and something else: they have different tables.
    """
    named = [is_shard(inputs.pattern or path) or is_shard(path) for path in inputs.paths]
    if any(named) and not all(named):
        raise InputRefused("shards (.tar) and images have different tables; score them in two runs")
    return all(named)


def shards_in(inputs: Inputs) -> list[Path]:
    shards = [Path(path) for path in inputs]
    others = [str(path) for path in shards if not is_shard(path)]
    if others or not shards:
        raise InputRefused(f"{others[0]} is no shard (.tar, .tar.gz)" if others else "nothing to do: no shard found")
    return shards


@dataclass(frozen=True)
class ShardJob:
    """The work on each shard.

    Args:
        identity: what a command must repeat to go on with an unfinished shard.
        versions: which all shards must share.
    """

    columns: Columns
    identity: dict[str, object]
    versions: Versions
    work: Work
    overwrite: bool
    reporter: Reporter


async def score_shards(shards: list[Path], folder: Path | None, job: ShardJob) -> int:
    """Write `<shard>.parquet` for each, beside it or into a folder; shards that have one are passed over.

    A shard that is cut off or damaged has no table, and the others go on. Returns how many samples, or shards, failed.
    """
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise OutputRefused(f"{folder} is a file; for shards --out is the folder for their tables")
        folder.mkdir(exist_ok=True)
    failed = there = 0
    for shard, out in zip(shards, scores_paths(shards, folder), strict=True):
        if out.exists() and not job.overwrite and not folder_of(out).exists():
            _check_finished(out, job)
            there += 1
            continue
        with PartialRun(out, {"shard": shard.name, **job.identity}, job.columns.schema(), job.overwrite) as run:
            failed += await _score_shard(shard, run, job.work, job.reporter)
    if there:
        job.reporter.tell(f"{there} of {len(shards)} shards had their table already", "kept", shards=there)
    return failed


async def _score_shard(shard: Path, run: PartialRun, work: Work, reporter: Reporter) -> int:
    """Score one shard; returns how many samples failed, 1 for a shard that cannot be read to its end."""
    if run.finished is not None:
        failed = int(run.finished["failed"])
        run.publish()
        return failed
    try:
        tally = await run_to_file(run, _items(shard, run.rows), work, reporter)
    except ShardError as error:
        run.discard()
        reporter.say(f"clipsieve: {error}", "error", shard=str(shard))
        return 1
    failed = failed_rows(run)
    finish(run, work)
    message, figures = work.summary(tally)
    reporter.tell(f"{shard}: {message}", "shard", shard=str(shard), **figures)
    return failed


def _items(shard: Path, start: int) -> Iterator[Item]:
    for sample in iter_samples(shard, start=start):
        yield sample.key, sample.error or sample.image


def _check_finished(out: Path, job: ShardJob) -> None:
    """A table that is there must be one that this run would write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(out) as table:
            names = table.schema_arrow.names
            if names == job.columns.names and table.num_row_groups:
                versions = table.read_row_group(0, ["model_version"])[0].drop_null()
                job.versions.check(versions[0].as_py() if len(versions) else "")
    except pa.ArrowException as error:
        raise OutputRefused(f"{out} is damaged ({error}); give --overwrite, or another --out") from None
    if names != job.columns.names:
        columns = f"{', '.join(names)}, this run would write {', '.join(job.columns.names)}"
        raise OutputRefused(f"{out} already exists with the columns {columns}; give --overwrite, or another --out")
