"""Reads embeddings that exist already, in the layouts people keep them, a block of rows at a time.

positive.npy, negative.npy                        (n, D) each; binary heads
x.npy, y.npy                                      (n, D) and its labels: (n,) class indexes or names, (n, L) 0/1
img_emb/img_emb_0.npy, metadata/metadata_0.parquet, …     clip-retrieval; the label is a column of the metadata
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.manifest import EncoderFingerprint
from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, label_from, label_from_columns

Layout = Literal["pair", "xy", "clip-retrieval"]

_LENGTH_TOLERANCE = 0.01  # float16 keeps a vector's length within 0.001
_NPY_MAGIC = b"\x93NUMPY"
_KEY_NAMES = ("image_path", "key")


@dataclass(frozen=True)
class Source:
    """One .npy of embeddings with what is said of its rows."""

    file: Path
    embedding: np.ndarray  # (n, D) float16, float32 or float64, mapped and not in memory
    label: list[str | None]
    key: list[str]
    split: list[str | None] | None = None
    """The split that the data prescribes for each row, if it does."""
    group: list[str | None] | None = None
    """The person, burst or video of each row, if the data says."""

    def __len__(self) -> int:
        return len(self.embedding)

    def where(self, row: int) -> str:
        return f"{self.file}: row {row}"


def sources_in(folder: Path, head: Head, label_name: str | None = "label") -> Iterator[Source]:
    """Each file of embeddings below a folder, in one of the layouts above.

    Args:
        folder: holds the files.
        head: whose task and class_names say what a label may be.
        label_name: column of clip-retrieval's metadata; None reads no labels from it.

    Raises:
        StepError: no known layout; a file is missing, cut off, holds Python objects, or another number of rows than
            its partner; or a label that the head cannot have. Names the file and the row, counted from 0.
    """
    layout = detected_layout(folder)
    if layout == "clip-retrieval":
        return _clip_retrieval(folder, head, label_name)
    return _pair(folder, head) if layout == "pair" else _xy(folder, head)


def detected_layout(folder: Path) -> Layout:
    """
    Raises:
        StepError: the folder's files are of no layout that can be read.
    """
    wanted: dict[Layout, tuple[str, str]] = {
        "clip-retrieval": ("img_emb", "metadata"),
        "pair": ("positive.npy", "negative.npy"),
        "xy": ("x.npy", "y.npy"),
    }
    for layout, names in wanted.items():
        there = [name for name in names if (folder / name).exists()]
        if len(there) == 2:
            return layout
        if there:
            [missing] = set(names) - set(there)
            raise StepError(f"{folder / missing}: no such file; {there[0]} needs it beside it")
    state = "holds none of" if folder.is_dir() else "no such folder; --data is one with"
    raise StepError(f"{folder}: {state} positive.npy and negative.npy, x.npy and y.npy, or img_emb/ and metadata/")


def check_rows(source: Source, encoder: EncoderFingerprint, block_rows: int = 8192) -> None:
    """Whether the embeddings can be this encoder's.

    Raises:
        StepError: another width, a value that is not finite, or a length other than 1 though the encoder
            normalises; names the file and the row, counted from 0.
    """
    width = source.embedding.shape[1]
    if width != encoder.embed_dim:
        raise StepError(
            f"{source.file}: embeddings have {width} values, those of encoder {encoder.id} {encoder.embed_dim}; "
            "name the recipe of the encoder that made them"
        )
    for start in range(0, len(source), block_rows):
        block = source.embedding[start : start + block_rows].astype(np.float32)
        _check_finite(source, start, block)
        if encoder.normalize:
            _check_length(source, start, block, encoder)


def load_array(file: Path) -> np.ndarray:
    """A .npy file, mapped: its values are read when they are used, and nothing in it is run.

    Raises:
        StepError: there is no such file, it is cut off or no .npy, or it holds Python objects.
    """
    try:
        with file.open("rb") as start:
            if start.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise ValueError("it does not begin as one")
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise StepError(f"{file}: no such file") from error
    except (ValueError, OSError, EOFError) as error:
        if "Python objects" in str(error):
            raise StepError(
                f"{file}: holds Python objects (dtype object), a pickle that could run code, and is not read; "
                "save plain numbers with numpy.save"
            ) from error
        raise StepError(f"{file}: no whole .npy file, {_size(file)} bytes ({error}); copy or save it again") from error


def _pair(folder: Path, head: Head) -> Iterator[Source]:
    if head.task != "binary":
        raise StepError(f"{folder}: positive.npy and negative.npy are for binary heads, {head.name} is {head.task}")
    for stem, name in zip(("negative", "positive"), head.class_names, strict=True):
        file = folder / f"{stem}.npy"
        embedding = _matrix(file)
        yield Source(file, embedding, [name] * len(embedding), _numbered(file, len(embedding)))


def _xy(folder: Path, head: Head) -> Iterator[Source]:
    file = folder / "x.npy"
    embedding, labels = _matrix(file), load_array(folder / "y.npy")
    _check_partner(folder / "y.npy", len(labels) if labels.ndim else 0, file, len(embedding))
    yield Source(file, embedding, _array_labels(folder / "y.npy", labels, head), _numbered(file, len(embedding)))


def _clip_retrieval(folder: Path, head: Head, label_name: str | None) -> Iterator[Source]:
    files = sorted((folder / "img_emb").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise StepError(f"{folder / 'img_emb'}: holds no .npy files")
    for file in files:
        metadata = folder / "metadata" / f"{file.stem.replace('img_emb', 'metadata')}.parquet"
        embedding, columns = _matrix(file), _metadata(metadata, label_name)
        _check_partner(metadata, columns.num_rows, file, len(embedding))
        key_name = next((name for name in _KEY_NAMES if name in columns.column_names), None)
        keys = [str(key) for key in columns[key_name].to_pylist()] if key_name else _numbered(file, len(embedding))
        values = columns[label_name].to_pylist() if label_name else [None] * len(keys)
        yield Source(file, embedding, _labels(metadata, values, head), keys)


def _metadata(file: Path, label_name: str | None) -> pa.Table:
    try:
        names = pq.read_schema(file).names
        if label_name is not None and label_name not in names:
            raise StepError(
                f"{file}: no column {label_name!r}; found: {', '.join(names)}. "
                "Name the column of the labels with --label-column, or take in unlabelled rows with --no-labels"
            )
        wanted = [name for name in (*_KEY_NAMES, label_name) if name in names]
        # Without a column Parquet would not say how many rows there are.
        return pq.ParquetFile(file).read(columns=wanted or names[:1])
    except FileNotFoundError as error:
        raise StepError(f"{file}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise StepError(f"{file}: no whole Parquet file ({error}); copy it again") from error


def _array_labels(file: Path, labels: np.ndarray, head: Head) -> list[str | None]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and head.task == "multilabel" and labels.shape[1] == len(head.labels):
        return _labels(file, labels.tolist(), head, by_column=True)
    if labels.ndim != 1 or head.task == "multilabel":
        wanted = f"(n, {len(head.labels)})" if head.task == "multilabel" else "(n,)"
        raise StepError(f"{file}: shape {labels.shape}, expected {wanted} for the {head.task} head {head.name}")
    return _labels(file, labels.tolist(), head)


def _labels(file: Path, values: list[Any], head: Head, by_column: bool = False) -> list[str | None]:
    read = label_from_columns if by_column else label_from
    labels: list[str | None] = []
    for row, value in enumerate(values):
        try:
            labels.append(read(value, head))
        except LabelError as error:
            raise StepError(f"{file}: row {row}: {error}") from error
    return labels


def _matrix(file: Path) -> np.ndarray:
    matrix = load_array(file)
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise StepError(
            f"{file}: shape {matrix.shape} of {matrix.dtype}, expected (rows, values) of float16 or float32"
        )
    return matrix


def _check_finite(source: Source, start: int, block: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(broken):
        raise StepError(
            f"{source.where(start + broken[0])} has values that are not finite; remove it or embed it again"
        )


def _check_length(source: Source, start: int, block: np.ndarray, encoder: EncoderFingerprint) -> None:
    lengths = np.linalg.norm(block, axis=1)
    wrong = np.flatnonzero(np.abs(lengths - 1) > _LENGTH_TOLERANCE)
    if len(wrong):
        raise StepError(
            f"{source.where(start + wrong[0])} has length {lengths[wrong[0]]:.3f}, but encoder {encoder.id} normalises "
            "its embeddings to 1; divide each row by its length, or name the recipe of the encoder that made them"
        )


def _check_partner(file: Path, rows: int, partner: Path, partner_rows: int) -> None:
    if rows != partner_rows:
        raise StepError(f"{file}: {rows} rows, but {partner} has {partner_rows}; they do not belong together")


def _numbered(file: Path, count: int) -> list[str]:
    return [f"{file.stem}/{row}" for row in range(count)]


def _size(file: Path) -> int:
    return file.stat().st_size
