"""New shards with the bytes of the wanted samples.

A new shard holds every member of the kept samples (image, json, text) and nothing else, in the old order. Headers
and contents are copied as bytes, so times, modes and owners stay; the old shard is only read.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from clipsieve.exceptions import FilterError, ShardError
from clipsieve.filter import Columns, ScoreRow, Tally, Wanted, columns_of_all, read_rows
from clipsieve.paths import text_from_path
from clipsieve.shards import SHARD_SUFFIXES, Layout, Span, layout_of, open_forwards

_CONDITION_FILE = "filter.json"
_CHUNK = 1 << 20
_END_BYTES = 1024  # two empty blocks, and then zeros to a multiple of the record
_RECORD_BYTES = 10_240


def find_shard(table: Path, folder: Path | None = None) -> Path:
    """The shard whose scores a table holds: of the same stem, beside the table or in `folder`."""
    within = table.parent if folder is None else folder
    shards = [path for suffix in SHARD_SUFFIXES if (path := within / f"{table.stem}{suffix}").exists()]
    if len(shards) != 1:
        what = f"both {shards[0].name} and {shards[1].name}" if shards else f"no {table.stem}.tar"
        raise FilterError(f"{table}: there is {what} in {within}; name the folder of its shard with --shards")
    return shards[0]


def filter_shards(
    tables: Sequence[Path],
    wanted: Wanted,
    out: Path,
    *,
    head: str | None = None,
    shards: Path | None = None,
    overwrite: bool = False,
    tell: Callable[[Path, Tally], None] = lambda shard, tally: None,
) -> Tally:
    """Write for each table a shard of the old one's name into the folder `out`, each whole or not at all.

    Shards that are there already are kept: the same call again goes on where the last one stopped.

    Args:
        shards: the folder of the shards, by default each table's own.
        overwrite: write all of them again.
        tell: called after each shard.

    Raises:
        TableError, ShardError, FilterError: a table is another shard's, or `out` holds what was filtered otherwise.
    """
    pairs = [(table, find_shard(table, shards)) for table in tables]
    _check_targets(pairs, out)
    columns = columns_of_all(tables, wanted, head)
    _check_condition(out, {"wanted": asdict(wanted), "columns": asdict(columns[0])}, overwrite)
    tally = Tally()
    for (table, shard), table_columns in zip(pairs, columns, strict=True):
        target = out / shard.name
        if not overwrite and _is_finished(target, table, shard):
            tally.finished += 1
        else:
            filter_shard(table, table_columns, wanted, shard, target, tally)
        tell(target, tally)
    return tally


def filter_shard(table: Path, columns: Columns, wanted: Wanted, shard: Path, target: Path, tally: Tally) -> None:
    """Write the kept samples of one shard to `target`, which appears when it is whole."""
    layout = layout_of(shard)
    rows = list(read_rows(table, columns, wanted))
    spans = _match(table, rows, shard, layout)
    kept = [wanted.keeps(row) for row in rows]
    _check_plain(shard, [span for span, keep in zip(spans, kept, strict=True) if keep])
    ranges = [*layout.common]
    for row, span, keep in zip(rows, spans, kept, strict=True):
        tally.count(row, keep)
        ranges += [(member.start, member.end) for member in span.members if keep]
    with whole_file(target) as file:
        if shard.name.lower().endswith(".tar"):
            _copy(shard, ranges, file)
        else:
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                _copy(shard, ranges, packed)
    tally.shards += 1


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when all is written; what a killed run left is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _match(table: Path, rows: list[ScoreRow], shard: Path, layout: Layout) -> list[Span]:
    """The span of each row; a key that comes twice belongs to the rows in their order."""
    spans: dict[str, deque[Span]] = {}
    for span in layout.spans:
        spans.setdefault(text_from_path(span.key), deque()).append(span)
    counts = Counter(row.name for row in rows)
    missing = [key for key, samples in spans.items() if counts[key] < len(samples)]
    extra = [key for key, count in counts.items() if count > len(spans.get(key, ()))]
    if missing or extra:
        parts = [f"no row for {_some(missing)}"] if missing else []
        parts += [f"rows without a sample: {_some(extra)}"] if extra else []
        raise FilterError(f"{table} is not the table of {shard}: {'; '.join(parts)}")
    return [spans[row.name].popleft() for row in rows]


def _check_plain(shard: Path, spans: list[Span]) -> None:
    for member in (member for span in spans for member in span.members):
        if member.kind in ("a symbolic link", "a hard link"):
            raise FilterError(f"{shard}: {member.name!r} is {member.kind}; what it points to may not be kept")


def _copy(shard: Path, ranges: list[tuple[int, int]], target: BinaryIO | gzip.GzipFile) -> None:
    """Copy these bytes of the tar, in their order, and end the new one."""
    written = 0
    with open_forwards(shard) as source:
        for start, end in sorted(ranges):
            source.seek(start)
            while source.tell() < end:
                piece = source.read(min(_CHUNK, end - source.tell()))
                if not piece:
                    raise ShardError(shard, f"became shorter while it was copied, at byte {source.tell()}")
                target.write(piece)
                written += len(piece)
    target.write(bytes(_END_BYTES + -(written + _END_BYTES) % _RECORD_BYTES))


def _check_targets(pairs: list[tuple[Path, Path]], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FilterError(f"{out} is a file; new shards need a folder")
    taken: dict[str, Path] = {}
    for _, shard in pairs:
        if shard.name in taken:
            raise FilterError(f"{taken[shard.name]} and {shard} would both be written to {out / shard.name}")
        taken[shard.name] = shard
        if out.exists() and out.samefile(shard.parent):
            raise FilterError(f"{out} is the folder of {shard}, which would be replaced; give another --out")


def _check_condition(out: Path, condition: dict[str, Any], overwrite: bool) -> None:
    """Shards that were filtered otherwise must not be taken for finished."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / _CONDITION_FILE
    text = json.dumps(condition, indent=2) + "\n"
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        before = " ".join(path.read_text(encoding="utf-8").split())
        raise FilterError(f"{out} was filtered with {before}; give --overwrite, or another --out")
    with whole_file(path) as file:
        file.write(text.encode())


def _is_finished(target: Path, table: Path, shard: Path) -> bool:
    if not target.exists():
        return False
    newer = [source for source in (table, shard) if source.stat().st_mtime_ns > target.stat().st_mtime_ns]
    if newer:
        raise FilterError(f"{target} is older than {newer[0]}; give --overwrite to write it again")
    return True


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
