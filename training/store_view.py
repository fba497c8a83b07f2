"""What a store says now: the last row of each path, and of each content its last label, corrected.

So a file that was replaced, or moved to the folder of another class, counts as it was last embedded. A correction says
what the label `was` and what it is; it holds until the data set itself gives that content another label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from common.manifest import EncoderFingerprint
from training.store import append_beside, check_part, index_in, read_beside, read_matrix, read_part, written_parts

_CORRECTIONS = "labels"


@dataclass(frozen=True)
class Embeddings:
    """The rows of a store as columns of equal length, sorted by content so that their order means nothing."""

    embedding: np.ndarray  # (n, embed_dim) float32
    key: list[str]
    path: list[str]
    sha256: list[str]
    label: list[str | None]
    """What counts: the last label of each content, corrected."""
    split: list[str | None] = field(default_factory=list)
    """The side that the data set itself prescribes."""
    own_label: list[str | None] = field(default_factory=list)
    """What the data set last said of each path; differs from `label` where copies disagree or were corrected."""
    corrected: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.key)


def read_embeddings(folder: Path, encoder: EncoderFingerprint) -> Embeddings:
    """What the store says now, with the embeddings.

    Raises:
        StepError: the store is missing, empty, another encoder's, or a part cannot be read.
    """
    parts = written_parts(folder)
    for part in parts:
        check_part(part, encoder)
    names = read_names(folder)
    return Embeddings(
        embedding=_gathered(parts, names["row"].to_numpy(), encoder.embed_dim),
        **{
            name: names[name].to_pylist()
            for name in ("key", "path", "sha256", "label", "split", "own_label", "corrected")
        },
    )


def read_names(folder: Path) -> pa.Table:
    """What the store says now, without the embeddings.

    Returns:
        key, path, sha256, label, split, own_label, corrected as in `Embeddings`; `data_label`, the label without
        corrections; and `row`, its number among all rows of all parts. Sorted by content, then path.

    Raises:
        StepError: the store is missing or empty, or a part cannot be read.
    """
    columns = ["key", "path", "sha256", "label", "split"]
    table = pa.concat_tables(read_part(part, columns) for part in written_parts(folder)).combine_chunks()
    labels, label_of = _codes(table["label"])
    contents, content_of = _codes(table["sha256"])
    last_label = np.full(len(contents), -1)
    last_label[content_of] = label_of  # the last row's word remains
    _, path_of = _codes(table["path"])
    last_row = np.zeros(path_of.max(initial=-1) + 1, np.int64)
    last_row[path_of] = np.arange(len(table))
    table = table.append_column("own_label", table["label"]).append_column("row", pa.array(np.arange(len(table))))
    table = table.set_column(table.schema.get_field_index("label"), "label", _taken(labels, last_label[content_of]))
    table = table.take(last_row).sort_by([("sha256", "ascending"), ("path", "ascending")])
    return _with_corrections(folder, table)


def append_corrections(folder: Path, sha256: list[str], was: list[str | None], label: list[str]) -> Path:
    """Give contents other labels; `was` is the label in the parts, without earlier corrections."""
    columns = (pa.array(values, pa.string()) for values in (sha256, was, label))
    return append_beside(folder, _CORRECTIONS, pa.table(list(columns), names=["sha256", "was", "label"]))


def _with_corrections(folder: Path, table: pa.Table) -> pa.Table:
    """The table with each correction applied whose `was` is still what the data set says."""
    label = table["label"].combine_chunks()
    corrected = np.zeros(len(table), bool)
    corrections = read_beside(folder, _CORRECTIONS, ["sha256", "was", "label"])
    if corrections:
        said = pa.concat_tables(corrections)
        columns = (said[name].to_pylist() for name in ("sha256", "was", "label"))
        last = {(sha256, was): to for sha256, was, to in zip(*columns, strict=True)}
        about = index_in(table["sha256"].combine_chunks(), said["sha256"].combine_chunks())
        values = label.to_pylist()
        for row in np.flatnonzero(about.is_valid()).tolist():
            rule = (table["sha256"][row].as_py(), values[row])
            corrected[row] = rule in last
            values[row] = last.get(rule, values[row])
        label = pa.array(values, pa.string())
    table = table.rename_columns(["data_label" if name == "label" else name for name in table.column_names])
    return table.append_column("label", label).append_column("corrected", pa.array(corrected))


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(different values, (n,) index of each row's value, -1 for null)."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary, np.asarray(encoded.indices.fill_null(-1))


def _taken(values: pa.Array, codes: np.ndarray) -> pa.Array:
    """The values of the codes, null for -1."""
    return values.take(pa.array(codes, mask=codes < 0))


def _gathered(parts: list[Path], rows: np.ndarray, embed_dim: int) -> np.ndarray:
    """(len(rows), embed_dim) float32: those rows of all parts' rows; one part is in memory at a time."""
    found = np.empty((len(rows), embed_dim), np.float32)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    start = 0
    for part in parts:
        matrix = read_matrix(part)
        low, high = np.searchsorted(ascending, (start, start + len(matrix)))
        found[order[low:high]] = matrix[ascending[low:high] - start]
        start += len(matrix)
    return found
