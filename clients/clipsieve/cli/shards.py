"""Scoring WebDataset shards: a Parquet for each, with the keys of its samples. The tars are only read.

A table that lies beside a shard already, with columns of its own, is its owner's: the scores are joined with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipsieve.cli.run import Work, finish, run_to_file
from clipsieve.commits import failed_rows
from clipsieve.exceptions import InputRefused, OutputRefused, ShardError
from clipsieve.inputs import Inputs
from clipsieve.joined import (
    KEY_COLUMNS,
    Unmatched,
    check_replaceable,
    is_metadata,
    joined_table,
    key_column,
    own_columns,
    read_metadata,
)
from clipsieve.partial import PartialRun, folder_of
from clipsieve.progress import Reporter
from clipsieve.scoring import Columns, Item, Versions
from clipsieve.shards import is_shard, iter_samples, scores_path, scores_paths
from clipsieve.table_batches import column_names


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
    in_place: bool = False
    """Add the scores to the tables that lie beside the shards."""


async def score_shards(shards: list[Path], folder: Path | None, job: ShardJob) -> int:
    """Write `<shard>.parquet` for each, beside it or into a folder; shards that have one are passed over.

    A shard that is cut off or damaged has no table, and the others go on. Returns how many samples, or shards, failed.

    Raises:
        OutputRefused: a table that is there is not ours to replace, or is of another run.
    """
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise OutputRefused(f"{folder} is a file; for shards --out is the folder for their tables")
        folder.mkdir(exist_ok=True)
    targets = [_target(*pair, job) for pair in zip(shards, scores_paths(shards, folder), strict=True)]
    failed = there = 0
    for target in targets:
        if target.is_finished(job):
            there += 1
            continue
        identity = {"shard": target.shard.name, "joined": target.metadata is not None, **job.identity}
        schema = job.columns.schema()
        with PartialRun(target.out, identity, schema, job.overwrite, replaces=target.metadata is not None) as run:
            failed += await _score_shard(target, run, job)
    if there:
        job.reporter.tell(f"{there} of {len(shards)} shards had their table already", "kept", shards=there)
    return failed


@dataclass(frozen=True)
class _Target:
    """The table that a shard's scores go into."""

    shard: Path
    out: Path
    metadata: Path | None
    """A table with a row for each sample, to join with."""

    @property
    def is_in_place(self) -> bool:
        return self.metadata == self.out

    def is_finished(self, job: ShardJob) -> bool:
        """True when the table has the scores that this run would write."""
        if not self.out.exists() or job.overwrite or folder_of(self.out).exists():
            return False
        if self.is_in_place and own_columns(self.out) is None:
            return False
        _check_finished(self.out, job)
        return True


def _target(shard: Path, out: Path, job: ShardJob) -> _Target:
    beside = scores_path(shard)
    metadata = beside if beside.is_file() and is_metadata(beside) else None
    if out == metadata and not job.in_place:
        raise OutputRefused(
            f"{out} has columns of its own ({', '.join(column_names(out)[:6])}) and is not replaced: give --out FOLDER "
            "for tables with its columns and the scores, or --in-place to add the scores to it"
        )
    if job.in_place and not (out.exists() or folder_of(out).exists()):
        raise OutputRefused(f"--in-place: {shard} has no table beside it; leave --in-place out to make one")
    if metadata is not None and key_column(metadata) is None:
        if job.in_place:
            raise OutputRefused(f"{metadata} has no column {' or '.join(KEY_COLUMNS)} to match samples by")
        job.reporter.tell(f"{metadata} has no column of keys and is not joined with the scores", "not_joined")
        metadata = None
    may_replace = job.overwrite or folder_of(out).exists()
    if out.exists() and out != metadata and may_replace and not (is_metadata(out) and own_columns(out)):
        check_replaceable(out)
    return _Target(shard, out, metadata)


async def _score_shard(target: _Target, run: PartialRun, job: ShardJob) -> int:
    """Score one shard; returns how many samples failed, 1 for a shard that cannot be read to its end."""
    shard, work, reporter = target.shard, job.work, job.reporter
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
    unmatched = Unmatched(0, 0)
    if target.metadata is None:
        finish(run, work)
    else:
        unmatched = _finish_joined(target.metadata, target.is_in_place, run)
    message, figures = work.summary(tally)
    figures |= {"rows_without_sample": unmatched.rows, "samples_without_row": unmatched.samples}
    reporter.tell(
        "; ".join(filter(None, [f"{shard}: {message}", unmatched.summary()])), "shard", shard=str(shard), **figures
    )
    return failed


def _finish_joined(metadata: Path, in_place: bool, run: PartialRun) -> Unmatched:
    """Write the metadata with the scores; a table that this replaces is kept beside it as `….parquet.bak`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    beside = read_metadata(metadata)
    assert beside is not None  # as it was when the target was chosen
    scores = pa.concat_tables([run.schema.empty_table(), *run.tables()])
    table, unmatched = joined_table(beside, scores, str(metadata))
    backup = metadata.with_name(f"{metadata.name}.bak")
    if in_place and not backup.exists():
        shutil.copy2(metadata, backup)
    run.finish(lambda file: pq.write_table(table, file), {"rows": run.rows, "failed": failed_rows(run)})
    return unmatched


def _items(shard: Path, start: int) -> Iterator[Item]:
    for sample in iter_samples(shard, start=start):
        yield sample.key, sample.error or sample.image


def _check_finished(out: Path, job: ShardJob) -> None:
    """A table that is there must be one that this run would write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(out) as table:
            own = own_columns(out)
            names = table.schema_arrow.names if own is None else ["key", *own]
            if names == job.columns.names and table.num_row_groups:
                versions = table.read_row_group(0, ["model_version"])[0].drop_null()
                job.versions.check(versions[0].as_py() if len(versions) else "")
    except pa.ArrowException as error:
        raise OutputRefused(f"{out} is damaged ({error}); give --overwrite, or another --out") from None
    if names != job.columns.names:
        columns = f"{', '.join(names)}, this run would write {', '.join(job.columns.names)}"
        raise OutputRefused(f"{out} already exists with the columns {columns}; give --overwrite, or another --out")
