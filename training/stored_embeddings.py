"""Reads embeddings that exist already, in the layouts people keep them, a block of rows at a time.

positive.npy, negative.npy                        (n, D) each; binary heads
safe.npy, nsfw.npy, …                             (n, D) each, a file per class with its name
x.npy, y.npy; x_….npy, y_….npy                    (n, D) and its labels: (n,) class indexes or names, (n, L) 0/1
all.npz                                           the same two in one file, called x and y
img_emb/img_emb_0.npy, metadata/metadata_0.parquet, …     clip-retrieval; the label is a column of the metadata
a.parquet, or a folder of them                    a column `embedding` of lists; the label is a column beside it

Embeddings may also be (n, 1, D). Labels may be one-hot, (n, L) for a head of L classes, and names may be bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsieve.arrow_paths import arrow_source
from clipsieve.embedding_files import (
    EMBEDDING_ARRAYS,
    ParquetEmbeddings,
    clip_retrieval_files,
    column_names_of,
    embedding_column,
    load_array,
    load_named_array,
    matrix_of,
    metadata_beside,
    not_whole,
)
from clipsieve.exceptions import TableError
from common.manifest import EncoderFingerprint
from recipes.head_section import Head
from training.errors import StepError
from training.labels import LabelError, class_called, label_from, label_from_columns

Layout = Literal["pair", "classes", "xy", "npz", "clip-retrieval", "parquet"]

_LENGTH_TOLERANCE = 0.01  # float16 keeps a vector's length within 0.001
_KEY_NAMES = ("image_path", "key", "path", "file_name", "filename", "url")
_LABEL_ARRAYS = ("y", "Y", "labels", "label")


@dataclass(frozen=True)
class Source:
    """One file of embeddings with what is said of its rows."""

    file: Path
    embedding: np.ndarray | ParquetEmbeddings  # (n, D) float16, float32 or float64, read as its rows are used
    label: list[str | None]
    key: list[str]
    split: list[str | None] | None = None
    """The split that the data prescribes for each row, if it does."""
    group: list[str | None] | None = None
    """The person, burst or video of each row, if the data says."""

    def __len__(self) -> int:
        return len(self.embedding)

    def block(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, D), the embeddings of some rows.

        Raises:
            StepError: they cannot be read.
        """
        with _step_errors():
            return self.embedding[start:stop]

    def where(self, row: int) -> str:
        return f"{self.file}: row {row}"


def sources_in(data: Path, head: Head, label_name: str | None = "label") -> Iterator[Source]:
    """Each file of embeddings of a data set, in one of the layouts above.

    Args:
        data: the folder that holds the files, or an .npz or .parquet.
        head: whose task and class_names say what a label may be.
        label_name: column of clip-retrieval's metadata or of a Parquet file; None reads no labels from it.

    Raises:
        StepError: no known layout; a file is missing, cut off, holds Python objects, or another number of rows than
            its partner; or a label that the head cannot have. Names the file and the row, counted from 0.
    """
    layout = detected_layout(data, head.class_names)
    with _step_errors():
        if layout == "clip-retrieval":
            yield from _clip_retrieval(data, head, label_name)
        elif layout == "parquet":
            yield from _parquet(_parquet_files(data), head, label_name)
        elif layout == "npz":
            yield from _npz(data if data.is_file() else _only(data, "*.npz"), head)
        elif layout == "xy":
            yield from _xy(_xy_files(data), head)
        else:
            yield from _pair(data, head) if layout == "pair" else _classes(data, head)


@contextmanager
def _step_errors() -> Iterator[None]:
    """Turn what the client's reader refuses into the end of the step."""
    try:
        yield
    except TableError as error:
        raise StepError(str(error)) from error


def detected_layout(data: Path, class_names: Sequence[str] = ()) -> Layout:
    """
    Args:
        data: as for `sources_in`.
        class_names: names that files of a class each may have.

    Raises:
        StepError: the files are of no layout that can be read.
    """
    if data.is_file() and data.suffix.lower() in (".npz", ".parquet"):
        return "npz" if data.suffix.lower() == ".npz" else "parquet"
    pairs: dict[Layout, tuple[str, str]] = {
        "clip-retrieval": ("img_emb", "metadata"),
        "pair": ("positive.npy", "negative.npy"),
        "xy": ("x.npy", "y.npy"),
    }
    for layout, names in pairs.items():
        present = [name for name in names if (data / name).exists()]
        if len(present) == 2:
            return layout
        if present:
            [missing] = set(names) - set(present)
            raise StepError(f"{data / missing}: no such file; {present[0]} needs it beside it")
    if class_names and {class_called(file.stem, class_names) for file in data.glob("*.npy")} == set(class_names):
        return "classes"
    if any(data.glob("x_*.npy")):
        return "xy"
    if any(data.glob("*.npz")):
        return "npz"
    if any(data.glob("*.parquet")):
        return "parquet"
    state = "holds none of" if data.is_dir() else "no such folder; --data is one with"
    raise StepError(
        f"{data}: {state} positive.npy and negative.npy, an .npy per class, x.npy and y.npy, an .npz, .parquet files, "
        "or img_emb/ and metadata/"
    )


def check_rows(source: Source, encoder: EncoderFingerprint, block_rows: int = 8192) -> None:
    """Check that the embeddings can be this encoder's.

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
        block = source.block(start, start + block_rows).astype(np.float32)
        _check_finite(source, start, block)
        if encoder.normalize:
            _check_length(source, start, block, encoder)


def _pair(folder: Path, head: Head) -> Iterator[Source]:
    if head.task != "binary":
        raise StepError(f"{folder}: positive.npy and negative.npy are for binary heads, {head.name} is {head.task}")
    for stem, name in zip(("negative", "positive"), head.class_names, strict=True):
        yield _of_one_class(folder / f"{stem}.npy", name)


def _classes(folder: Path, head: Head) -> Iterator[Source]:
    if head.task not in ("binary", "multiclass"):
        raise StepError(f"{folder}: a file per class cannot say a {head.task} head's labels; give x.npy and y.npy")
    for file in sorted(folder.glob("*.npy")):
        name = class_called(file.stem, head.class_names)
        if name is not None:
            yield _of_one_class(file, name)


def _of_one_class(file: Path, name: str) -> Source:
    embedding = _matrix(file)
    return Source(file, embedding, [name] * len(embedding), _numbered(file, len(embedding)))


def _xy(files: tuple[Path, Path], head: Head) -> Iterator[Source]:
    file, label_file = files
    embedding, labels = _matrix(file), load_array(label_file)
    _check_partner(label_file, len(labels) if labels.ndim else 0, file, len(embedding))
    yield Source(file, embedding, _array_labels(label_file, labels, head), _numbered(file, len(embedding)))


def _xy_files(folder: Path) -> tuple[Path, Path]:
    """x.npy and y.npy, or the two that begin so, such as LAION's x_OpenAI_CLIP_L14_embeddings.npy and y_ratings.npy."""
    if (folder / "x.npy").exists():
        return folder / "x.npy", folder / "y.npy"
    return _only(folder, "x_*.npy"), _only(folder, "y_*.npy")


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "none"
        raise StepError(f"{folder}: one {pattern} is needed, found {names}; leave one in the folder")
    return files[0]


def _npz(file: Path, head: Head) -> Iterator[Source]:
    embedding = matrix_of(file, load_named_array(file, EMBEDDING_ARRAYS))
    labels = load_named_array(file, _LABEL_ARRAYS)
    _check_partner(file, len(labels) if labels.ndim else 0, file, len(embedding))
    yield Source(file, embedding, _array_labels(file, labels, head), _numbered(file, len(embedding)))


def _parquet_files(data: Path) -> list[Path]:
    return [data] if data.is_file() else sorted(data.glob("*.parquet"))


def _parquet(files: list[Path], head: Head, label_name: str | None) -> Iterator[Source]:
    for file in files:
        embedding = ParquetEmbeddings(file, embedding_column(file))
        labels, keys = _described(file, head, label_name)
        yield Source(file, embedding, labels, keys or _numbered(file, len(embedding)))


def _described(metadata: Path, head: Head, label_name: str | None) -> tuple[list[str | None], list[str]]:
    """Labels and keys of a Parquet file's rows; no keys where no column has them."""
    columns = _metadata(metadata, label_name)
    key_name = next((name for name in _KEY_NAMES if name in columns.column_names), None)
    keys = [str(key) for key in columns[key_name].to_pylist()] if key_name else []
    values = columns[label_name].to_pylist() if label_name else [None] * columns.num_rows
    return _labels(metadata, values, head), keys


def _clip_retrieval(folder: Path, head: Head, label_name: str | None) -> Iterator[Source]:
    for file in clip_retrieval_files(folder):
        metadata, embedding = metadata_beside(file), _matrix(file)
        labels, keys = _described(metadata, head, label_name)
        _check_partner(metadata, len(labels), file, len(embedding))
        yield Source(file, embedding, labels, keys or _numbered(file, len(embedding)))


def _metadata(file: Path, label_name: str | None) -> pa.Table:
    names = column_names_of(file)
    if label_name is not None and label_name not in names:
        raise StepError(
            f"{file}: no column {label_name!r}; found: {', '.join(names)}. "
            "Name the column of the labels with --label-column, or take in unlabelled rows with --no-labels"
        )
    columns = [name for name in (*_KEY_NAMES, label_name) if name in names]
    try:
        # Without a column Parquet would not say how many rows there are.
        return pq.ParquetFile(arrow_source(file)).read(columns=columns or names[:1])
    except (OSError, pa.ArrowException) as error:
        raise not_whole(file, error) from error


def _array_labels(file: Path, labels: np.ndarray, head: Head) -> list[str | None]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and head.task == "multilabel" and labels.shape[1] == len(head.labels):
        return _labels(file, labels.tolist(), head, by_column=True)
    if labels.ndim == 2 and head.task in ("binary", "multiclass") and labels.shape[1] == len(head.class_names):
        return _one_hot_labels(file, labels, head)
    if labels.ndim != 1 or head.task == "multilabel":
        shape = f"(n, {len(head.labels)})" if head.task == "multilabel" else "(n,)"
        raise StepError(f"{file}: shape {labels.shape}, expected {shape} for the {head.task} head {head.name}")
    values = labels.tolist()
    if labels.dtype.kind == "S":
        values = [value.decode("utf-8", "replace") for value in values]
    return _labels(file, values, head)


def _one_hot_labels(file: Path, labels: np.ndarray, head: Head) -> list[str | None]:
    """The class of each row of (n, L), of which one value is 1 and the others are 0."""
    wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1) | (labels.sum(axis=1) != 1))
    if len(wrong):
        shown = labels[wrong[0]].tolist()
        raise StepError(f"{file}: row {wrong[0]} is {shown!r:.60}, expected one 1 among {len(head.class_names)} values")
    return [head.class_names[index] for index in labels.argmax(axis=1)]


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
    return matrix_of(file, load_array(file))


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
