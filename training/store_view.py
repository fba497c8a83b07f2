"""The pictures of a head: what all its data sets say together, one row a content.

A content is one picture wherever its files lie. A data set that gives no label says nothing. Two that give different
ones leave the picture without a label until a correction settles it, unless one of them decides; of two prescribed
sides the more held-out one counts. A correction says what the label `was` and what it is; it holds until the data sets
themselves say another.
Where the data sets hold choices between pictures and no label at all, the labels are the choices' scores
(`training.bradley_terry`), of all data sets together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.manifest import EncoderFingerprint
from training.bradley_terry import bradley_terry
from training.errors import StepError
from training.parquet_files import append_table, codes_of, index_in, read_columns, read_tables
from training.sources import BEATS, HeadData, Source, read_sources
from training.store import check_part, read_matrix, written_parts

SIDES = ("train", "validation", "test")

_CORRECTIONS = "corrections"


@dataclass(frozen=True)
class Pictures:
    """Columns of equal length, a row a content, sorted by content so that the order of files means nothing."""

    key: list[str]
    """Of the first of its files by path."""
    path: list[str]
    sha256: list[str]
    label: list[str | None]
    """What counts: the label on which the data sets agree, corrected."""
    split: list[str | None]
    """The side that a data set prescribes."""
    group: list[tuple[str, ...]]
    """The persons, bursts or videos that its data sets name."""
    data_label: list[str | None]
    """The label without corrections; None where the data sets disagree or say nothing."""
    disputed: dict[str, list[tuple[str, str]]]
    """Content → (path, label) of its files, where the data sets give it several labels."""
    corrected: list[bool]
    files: np.ndarray
    """(n,) int64: files that each content has."""
    choices: np.ndarray
    """(m, 2) int64: rows of the preferred picture and the other one, for each choice between them."""

    def __len__(self) -> int:
        return len(self.sha256)


@dataclass(frozen=True)
class Embeddings:
    """The pictures of a head with their embeddings."""

    embedding: np.ndarray  # (n, embed_dim) float32
    pictures: Pictures = field(repr=False)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def key(self) -> list[str]:
        return self.pictures.key

    @property
    def path(self) -> list[str]:
        return self.pictures.path

    @property
    def sha256(self) -> list[str]:
        return self.pictures.sha256

    @property
    def label(self) -> list[str | None]:
        return self.pictures.label

    @property
    def split(self) -> list[str | None]:
        return self.pictures.split


def read_embeddings(data: HeadData, encoder: EncoderFingerprint) -> Embeddings:
    """The pictures of a head, with their embeddings.

    Raises:
        StepError: the store is missing, empty, another encoder's or damaged; no data set was read for this head; or a
            picture has no embedding.
    """
    parts = written_parts(data.store)
    for part in parts:
        check_part(part, encoder)
    pictures = read_pictures(data)
    rows = _rows_of(data, pictures.sha256, parts)
    return Embeddings(_gathered(parts, rows, encoder.embed_dim), pictures)


def read_pictures(data: HeadData) -> Pictures:
    """The pictures of a head.

    Raises:
        StepError: no data set was read for it, or a file is damaged.
    """
    return _by_content(data, read_mentions(data))


def read_mentions(data: HeadData) -> pa.Table:
    """Read what the data sets say of each file: the columns of `training.sources`, sorted by content, then path.

    Where one that decides labels a picture, the labels that others give it are left away.

    Raises:
        StepError: no data set was read for this head, or a file is damaged.
    """
    sources = read_sources(data)
    if not sources:
        raise StepError(
            f"{data.store}: no data set was read for {data}; name one (what is embedded already is kept): "
            f"python -m training.embed --recipe {data.recipe} --head {data.head} --data FOLDER"
        )
    table = pa.concat_tables(_undecided(sources)).combine_chunks()
    if not len(table):
        raise StepError(f"{data.store}: the data sets of {data} have no pictures any more")
    return table.sort_by([("sha256", "ascending"), ("path", "ascending")])


def _undecided(sources: Sequence[Source]) -> Iterator[pa.Table]:
    """What each data set says, but for the labels of pictures that one which decides has labelled."""
    decided = {
        content
        for source in sources
        if source.decides
        for content, label in zip(*(source.mentions[name].to_pylist() for name in ("sha256", "label")), strict=True)
        if label is not None
    }
    for source in sources:
        if source.decides or not decided:
            yield source.mentions
            continue
        columns = (source.mentions[name].to_pylist() for name in ("sha256", "label"))
        kept = [None if content in decided else label for content, label in zip(*columns, strict=True)]
        labels = pa.array(kept, pa.string())
        place = source.mentions.schema.get_field_index("label")
        yield source.mentions.set_column(place, source.mentions.schema.field(place), labels)


def append_corrections(data: HeadData, sha256: list[str], was: list[str | None], label: list[str]) -> Path:
    """Give contents other labels; `was` is their `Pictures.data_label`."""
    columns = (pa.array(values, pa.string()) for values in (sha256, was, label))
    return append_table(data.folder, _CORRECTIONS, pa.table(list(columns), names=["sha256", "was", "label"]))


def _by_content(data: HeadData, mentions: pa.Table) -> Pictures:
    _, content_of = codes_of(mentions["sha256"])
    starts = np.flatnonzero(np.diff(content_of, prepend=-1))
    first = mentions.take(pa.array(starts))
    labels, label_of = codes_of(mentions["label"])
    agreed, disputed = _agreed(label_of, starts)
    own = labels.take(pa.array(agreed, mask=agreed < 0)).to_pylist()
    sums = first["sha256"].to_pylist()
    choices = _choices(mentions, first["sha256"])
    if len(choices) and agreed.max() < 0 and not disputed.any():
        own = _chosen_scores(choices, len(sums))
    label, corrected = _with_corrections(data, sums, own)
    return Pictures(
        key=first["key"].to_pylist(),
        path=first["path"].to_pylist(),
        sha256=sums,
        label=label,
        split=_prescribed(data, mentions["split"], starts),
        group=_groups(mentions["group"], starts),
        data_label=own,
        disputed=_disputed_files(mentions, starts, np.flatnonzero(disputed)),
        corrected=corrected,
        files=np.diff(starts, append=len(mentions)),
        choices=choices,
    )


def _choices(mentions: pa.Table, contents: pa.ChunkedArray) -> np.ndarray:
    """(m, 2) rows of winner and loser among the contents; a choice whose other picture is gone is left out."""
    beats = mentions[BEATS].combine_chunks()
    losers = index_in(pc.call_function("list_flatten", [beats]), contents.combine_chunks())
    files = pc.call_function("list_parent_indices", [beats])
    winners = index_in(mentions["sha256"].combine_chunks().take(files), contents.combine_chunks())
    pairs = np.stack([np.asarray(winners.fill_null(-1)), np.asarray(losers.fill_null(-1))], axis=1).astype(np.int64)
    return pairs[(pairs >= 0).all(axis=1)]


def _chosen_scores(choices: np.ndarray, count: int) -> list[str | None]:
    """The score of each picture as its label; None for one that no choice names."""
    rows = np.unique(choices)
    labels: list[str | None] = [None] * count
    for row, score in zip(rows, bradley_terry(np.searchsorted(rows, choices), len(rows)), strict=True):
        labels[row] = repr(float(score))
    return labels


def _agreed(codes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each content's one code ≥ 0, -1 if its files have none or several; and whether they have several."""
    highest = np.maximum.reduceat(codes, starts)
    lowest = np.minimum.reduceat(np.where(codes < 0, np.iinfo(codes.dtype).max, codes), starts)
    disputed = (highest >= 0) & (lowest < highest)
    return np.where(disputed, -1, highest), disputed


def _prescribed(data: HeadData, column: pa.ChunkedArray, starts: np.ndarray) -> list[str | None]:
    unknown = set(column.unique().to_pylist()) - {None, *SIDES}
    if unknown:
        raise StepError(
            f"{data.store}: the data sets of {data} prescribe {sorted(unknown)}, expected {', '.join(SIDES)}"
        )
    sides = np.asarray(index_in(column.combine_chunks(), pa.array(SIDES)).fill_null(-1))
    return [None if side < 0 else SIDES[side] for side in np.maximum.reduceat(sides, starts).tolist()]


def _groups(column: pa.ChunkedArray, starts: np.ndarray) -> list[tuple[str, ...]]:
    groups: list[tuple[str, ...]] = [()] * len(starts)
    if column.null_count < len(column):
        names = column.to_pylist()
        ends = [*starts[1:].tolist(), len(names)]
        for row, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
            groups[row] = tuple(sorted({name for name in names[start:end] if name is not None}))
    return groups


def _disputed_files(mentions: pa.Table, starts: np.ndarray, rows: np.ndarray) -> dict[str, list[tuple[str, str]]]:
    ends = [*starts[1:].tolist(), len(mentions)]
    disputed = {}
    for row in rows.tolist():
        files = mentions.slice(int(starts[row]), ends[row] - int(starts[row]))
        pairs = zip(files["path"].to_pylist(), files["label"].to_pylist(), strict=True)
        disputed[files["sha256"][0].as_py()] = [(path, label) for path, label in pairs if label is not None]
    return disputed


def _with_corrections(data: HeadData, sums: list[str], labels: list[str | None]) -> tuple[list[str | None], list[bool]]:
    """The labels with each correction applied whose `was` is still what the data sets say, and where one was."""
    corrected, tables = [False] * len(sums), read_tables(data.folder, _CORRECTIONS, ["sha256", "was", "label"])
    if not tables:
        return labels, corrected
    table, labels = pa.concat_tables(tables), [*labels]
    columns = (table[name].to_pylist() for name in ("sha256", "was", "label"))
    last = {(sha256, was): label for sha256, was, label in zip(*columns, strict=True)}
    place_of = {content: row for row, content in enumerate(sums)}
    for (sha256, was), label in last.items():
        row = place_of.get(sha256)
        if row is not None and labels[row] == was and not corrected[row]:
            labels[row], corrected[row] = label, True
    return labels, corrected


def _rows_of(data: HeadData, contents: list[str], parts: list[Path]) -> np.ndarray:
    """(n,) number of each content's row among all rows of all parts."""
    table = pa.concat_tables(read_columns(part, ["sha256"]) for part in parts)
    distinct, code_of = codes_of(table["sha256"])
    row_of = np.empty(len(distinct), np.int64)
    row_of[code_of] = np.arange(len(code_of))
    place = index_in(pa.array(contents, pa.string()), distinct)
    if place.null_count:
        first = contents[place.is_null().index(True).as_py()]
        raise StepError(
            f"{data.store}: {place.null_count} pictures of {data} have no embedding here, the first {first}; was a "
            "part deleted? Embed its data set again"
        )
    return row_of[np.asarray(place)]


def _gathered(parts: list[Path], rows: np.ndarray, embed_dim: int) -> np.ndarray:
    """(len(rows), embed_dim) float32: those rows of all parts' rows; one part is in memory at a time."""
    gathered = np.empty((len(rows), embed_dim), np.float32)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    start = 0
    for part in parts:
        matrix = read_matrix(part)
        low, high = np.searchsorted(ascending, (start, start + len(matrix)))
        gathered[order[low:high]] = matrix[ascending[low:high] - start]
        start += len(matrix)
    return gathered
