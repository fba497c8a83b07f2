"""Keeps what data sets say of the pictures a head is fitted to: labels, prescribed splits and groups, by content.

    <store>/labels/<recipe>/<head>/
        source-1f0c9a3e-00002-….parquet     one data set as last read: key, path, sha256, label, split, group, beats
        missing-7b02c1d4-00000-….parquet    the same, of one that is no longer where it was
        corrections-00000-….parquet         sha256, was, label                      (training.relabel)
        split-41d2c09b-00000-….parquet      sides that were drawn: sha256, split    (training.split)

A data set is known by where it lies. Reading it again replaces what it said before, so that files which are gone, moved
or relabelled are gone, moved or relabelled here. One that cannot be found any more counts no longer, and counts again
when it is back. `path` is the image file, or `<file>#<key or row>` for what lies inside a file.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from clipsieve.arrow_paths import read_schema
from clipsieve.paths import path_from_text
from training.errors import StepError
from training.parquet_files import read_columns, readable, write_table

COLUMNS = ("key", "path", "sha256", "label", "split", "group")
BEATS = "beats"
"""Column of the contents that each file was preferred to; files from before there were choices lack it."""

_METADATA_KEY = b"clipsieve.source"
_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=name in ("label", "split", "group")) for name in COLUMNS),
        pa.field(BEATS, pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class HeadData:
    """The place in a store of what data sets say for one head of one recipe."""

    store: Path
    recipe: str
    head: str

    @property
    def folder(self) -> Path:
        return self.store / "labels" / self.recipe / self.head

    def __str__(self) -> str:
        return f"head {self.head} of recipe {self.recipe}"


@dataclass(frozen=True)
class Mention:
    """One file as a data set describes it."""

    key: str
    path: str
    sha256: str
    label: str | None
    split: str | None = None
    group: str | None = None
    beats: tuple[str, ...] = ()
    """Contents that this one was preferred to, once for each choice."""


@dataclass(frozen=True)
class Source:
    """One data set as it was last read."""

    identity: str
    """What it is and where it lies: `folders /data/set`."""
    mentions: pa.Table
    """COLUMNS and BEATS, one row a file."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason → files or rows of it that have no embedding or no place among the samples."""
    notes: list[str] = field(default_factory=list)
    """Facts of its reading that a person should know."""
    generation: int = 0
    decides: bool = False
    """Its labels count alone where other data sets say otherwise of the same picture."""


@dataclass(frozen=True)
class Changes:
    """The changes since last time, in pictures (contents)."""

    new: int
    gone: int
    moved: int
    relabelled: int
    missing: dict[str, int]
    """Identity → files of each data set that is no longer where it was."""


def mentions_table(mentions: Iterable[Mention]) -> pa.Table:
    """The rows as a table of COLUMNS and BEATS."""
    rows = list(mentions)
    columns = [[_utf8(getattr(row, name)) for row in rows] for name in COLUMNS]
    arrays = [pa.array(column, pa.string()) for column in columns]
    beats = pa.array([list(row.beats) or None for row in rows], pa.list_(pa.string()))
    return pa.table([*arrays, beats], schema=_SCHEMA)


def read_sources(data: HeadData) -> list[Source]:
    """The data sets that count, in the order of their identities' sums.

    Raises:
        StepError: a file cannot be read.
    """
    latest: dict[str, Source] = {}
    for file in sorted(data.folder.glob("source-*.parquet")):
        source = _read(file)
        latest[source.identity] = source
    return list(latest.values())


def write_source(data: HeadData, source: Source, keep_missing: bool = False) -> Changes:
    """Put what a data set says now in the place of what it said before.

    Args:
        data: of the head.
        source: as it was just read; its generation is given here.
        keep_missing: files that the data set no longer has, and data sets that are no longer there, go on counting.
    """
    before = read_sources(data)
    former = next((other for other in before if other.identity == source.identity), None)
    mentions = source.mentions
    if keep_missing and former is not None:
        mentions = _with_missing_files(mentions, former.mentions)
    _replace(data, source, mentions, former)
    missing = _set_missing_aside(data, source.identity, keep_missing)
    return _changes(before, read_sources(data), missing)


def add_mentions(data: HeadData, identity: str, mentions: Iterable[Mention]) -> None:
    """Add files to what a data set says, in place of what it said of the same paths; other data sets stay."""
    former = next((other for other in read_sources(data) if other.identity == identity), None)
    added = mentions_table(mentions)
    _replace(data, Source(identity, added), _with_missing_files(added, former.mentions) if former else added, former)


def adopt_former_files(data: HeadData) -> None:
    """Take corrections and drawn sides of a store from before labels belonged to a head into this head's folder.

    Its parts are read as they are; what they say of labels is not, because nobody can tell whose labels they were.
    """
    for file in sorted(data.store.glob("_*.parquet")):
        name = file.name.removeprefix("_").replace("labels-", "corrections-", 1)
        if name.startswith(("corrections-", "split-")):
            data.folder.mkdir(parents=True, exist_ok=True)
            file.rename(data.folder / name)


def heads_in(store: Path) -> list[HeadData]:
    """The heads of which a store has labels."""
    folders = sorted(path for path in (store / "labels").glob("*/*") if path.is_dir())
    return [HeadData(store, folder.parent.name, folder.name) for folder in folders]


def is_there(identity: str) -> bool:
    """Return True if a data set still lies where its identity says."""
    path = path_from_text(identity.partition(" ")[2])
    return Path(path).exists() or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))


def _replace(data: HeadData, source: Source, mentions: pa.Table, former: Source | None) -> None:
    """Write what a data set says now; the file from before goes once that is there."""
    if mentions[BEATS].null_count == len(mentions):
        mentions = mentions.drop_columns([BEATS])
    stem = f"source-{_short_sum(source.identity)}"
    replaced = list(data.folder.glob(f"{stem}-*.parquet"))
    generation = former.generation + 1 if former else 0
    facts = {
        "identity": source.identity,
        "generation": generation,
        "left_out": source.left_out,
        "notes": source.notes,
        "decides": source.decides,
    }
    write_table(
        data.folder,
        f"{stem}-{generation:05d}",
        mentions.replace_schema_metadata({_METADATA_KEY: json.dumps(facts).encode()}),
    )
    for file in replaced:
        file.unlink(missing_ok=True)


def _set_missing_aside(data: HeadData, current: str, keep: bool) -> dict[str, int]:
    """Give each other data set the name of one that counts or one that is missing; those that are newly missing."""
    missing: dict[str, int] = {}
    for file in sorted([*data.folder.glob("source-*.parquet"), *data.folder.glob("missing-*.parquet")]):
        source = _read(file)
        if source.identity == current:
            continue
        counts = keep or is_there(source.identity)
        name = ("source-" if counts else "missing-") + file.name.partition("-")[2]
        if name != file.name:
            file.rename(file.with_name(name))
            if not counts:
                missing[source.identity] = len(source.mentions)
    return missing


def _with_missing_files(mentions: pa.Table, former: pa.Table) -> pa.Table:
    """The mentions, and those of before whose path is none of theirs."""
    paths = set(mentions["path"].to_pylist())
    kept = [path not in paths for path in former["path"].to_pylist()]
    return pa.concat_tables([mentions, former.filter(pa.array(kept, pa.bool_()))])


def _changes(before: list[Source], after: list[Source], missing: dict[str, int]) -> Changes:
    old, new = (
        pa.concat_tables([_SCHEMA.empty_table(), *(source.mentions for source in sources)])
        for sources in (before, after)
    )
    contents, former = set(new["sha256"].to_pylist()), set(old["sha256"].to_pylist())
    common = contents & former
    moved, relabelled = (
        common - {content for content, _ in _pairs(old, name) & _pairs(new, name)} for name in ("path", "label")
    )
    return Changes(len(contents - former), len(former - contents), len(moved), len(relabelled), missing)


def _pairs(table: pa.Table, name: str) -> set[tuple[str, str | None]]:
    return set(zip(table["sha256"].to_pylist(), table[name].to_pylist(), strict=True))


def _read(file: Path) -> Source:
    schema = readable(file, lambda: read_schema(file))
    metadata = schema.metadata or {}
    try:
        facts = json.loads(metadata[_METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise StepError(f"{file}: says of no data set what it was read from; delete it and embed again") from error
    mentions = read_columns(file, [name for name in _SCHEMA.names if name in schema.names])
    if BEATS not in schema.names:
        mentions = mentions.append_column(_SCHEMA.field(BEATS), pa.nulls(len(mentions), pa.list_(pa.string())))
    mentions = mentions.replace_schema_metadata(None)
    decides = facts.get("decides", False)  # stores from before there were answers that decide lack it
    return Source(facts["identity"], mentions, facts["left_out"], facts["notes"], facts["generation"], decides)


def _utf8(text: str | None) -> str | None:
    r"""A text that Arrow takes; a lone surrogate, which JSON can write, as its six characters `\ud800`."""
    return text if text is None or text.isascii() else text.encode(errors="backslashreplace").decode()


def _short_sum(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
