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

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.types import is_fixed_size_list, is_large_list, is_list

from common.manifest import EncoderFingerprint
from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, class_called, label_from, label_from_columns
from training.parquet_files import parquet_source, read_schema

Layout = Literal["pair", "classes", "xy", "npz", "clip-retrieval", "parquet"]

_LENGTH_TOLERANCE = 0.01  # float16 keeps a vector's length within 0.001
_NPY_MAGIC = b"\x93NUMPY"
_KEY_NAMES = ("image_path", "key", "path", "file_name", "filename", "url")
_EMBEDDING_NAMES = ("embedding", "image_embedding", "img_emb", "clip_embedding", "embeddings")
_XY_NAMES = (("x", "X", "embeddings", "features"), ("y", "Y", "labels", "label"))


class ParquetEmbeddings:
    """(n, D) of a Parquet file's column of lists, read by slices of rows; one row group is in memory at a time."""

    def __init__(self, file: Path, column: str) -> None:
        """
        Raises:
            StepError: the file is not whole, holds no rows, or its rows have no values.
        """
        self._file = file
        self._column = column
        self._held: tuple[int, np.ndarray] = (-1, np.empty((0, 0)))
        try:
            about = pq.read_metadata(parquet_source(file))
        except (OSError, pa.ArrowException) as error:
            raise StepError(f"{file}: no whole Parquet file ({error}); copy it again") from error
        counts = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._ends = np.cumsum([0, *counts])
        if not self._ends[-1]:
            raise StepError(f"{file}: holds no rows")
        first = self._group(0)
        self.dtype = first.dtype
        self.shape = (int(self._ends[-1]), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The rows of a slice without a step.

        Raises:
            StepError: their lists differ in length, or a row has none.
        """
        start, stop, _ = rows.indices(len(self))
        groups = range(len(self._ends) - 1)
        within = [group for group in groups if self._ends[group] < stop and self._ends[group + 1] > start]
        parts = [self._group(group)[max(start - self._ends[group], 0) : stop - self._ends[group]] for group in within]
        return np.concatenate(parts) if parts else np.empty((0, self.shape[1]), self.dtype)

    def _group(self, group: int) -> np.ndarray:
        if self._held[0] != group:
            self._held = (group, self._read(group))
        return self._held[1]

    def _read(self, group: int) -> np.ndarray:
        start = int(self._ends[group])
        try:
            with pq.ParquetFile(parquet_source(self._file)) as parquet:
                lists = parquet.read_row_group(group, columns=[self._column]).column(0).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise StepError(f"{self._file}: no whole Parquet file ({error}); copy it again") from error
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks)
        if not (is_list(lists.type) or is_large_list(lists.type) or is_fixed_size_list(lists.type)):
            raise StepError(f"{self._file}: {self._column!r} holds {lists.type}, expected lists of numbers")
        if not is_list(lists.type):
            lists = lists.cast(pa.list_(lists.type.value_type))  # of a fixed size, or large
        widths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        width = self.shape[1] if group else int(widths[0]) if len(widths) else 0
        odd = np.flatnonzero((widths != width) | (widths == 0))
        values = lists.flatten()
        if len(odd) or values.null_count:
            row = start + int(odd[0]) if len(odd) else start
            found = f"{widths[odd[0]]} values, others {width}" if len(odd) else "or follows one that has empty values"
            raise StepError(f"{self._file}: row {row} of {self._column!r} has {found}; remove it or embed it again")
        flat = values.to_numpy(zero_copy_only=False)
        if flat.dtype.kind != "f":
            raise StepError(f"{self._file}: {self._column!r} holds {flat.dtype}, expected float16 or float32")
        return flat.reshape(len(widths), width)


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
    if layout == "clip-retrieval":
        return _clip_retrieval(data, head, label_name)
    if layout == "parquet":
        return _parquet(_parquet_files(data), head, label_name)
    if layout == "npz":
        return _npz(data if data.is_file() else _only(data, "*.npz"), head)
    if layout == "xy":
        return _xy(_xy_files(data), head)
    return _pair(data, head) if layout == "pair" else _classes(data, head)


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
    wanted: dict[Layout, tuple[str, str]] = {
        "clip-retrieval": ("img_emb", "metadata"),
        "pair": ("positive.npy", "negative.npy"),
        "xy": ("x.npy", "y.npy"),
    }
    for layout, names in wanted.items():
        there = [name for name in names if (data / name).exists()]
        if len(there) == 2:
            return layout
        if there:
            [missing] = set(names) - set(there)
            raise StepError(f"{data / missing}: no such file; {there[0]} needs it beside it")
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
        found = ", ".join(file.name for file in files[:5]) or "none"
        raise StepError(f"{folder}: one {pattern} is needed, found {found}; leave one in the folder")
    return files[0]


def _npz(file: Path, head: Head) -> Iterator[Source]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            names = [next((name for name in known if name in arrays), None) for known in _XY_NAMES]
            if names[0] is None or names[1] is None:
                raise StepError(f"{file}: needs the arrays x and y, found {', '.join(arrays) or 'none'}")
            embedding, labels = arrays[names[0]], arrays[names[1]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        objects = "Python objects are a pickle that could run code" if "allow_pickle" in str(error) else str(error)
        raise StepError(f"{file}: no whole .npz file of plain numbers ({objects}); save it again") from error
    embedding = _checked_matrix(file, embedding)
    _check_partner(file, len(labels) if labels.ndim else 0, file, len(embedding))
    yield Source(file, embedding, _array_labels(file, labels, head), _numbered(file, len(embedding)))


def _parquet_files(data: Path) -> list[Path]:
    return [data] if data.is_file() else sorted(data.glob("*.parquet"))


def _parquet(files: list[Path], head: Head, label_name: str | None) -> Iterator[Source]:
    for file in files:
        try:
            names = read_schema(file).names
        except (OSError, pa.ArrowException) as error:
            raise StepError(f"{file}: no whole Parquet file ({error}); copy it again") from error
        column = next((name for name in _EMBEDDING_NAMES if name in names), None)
        if column is None:
            raise StepError(f"{file}: no column {' or '.join(_EMBEDDING_NAMES)}; found: {', '.join(names)}")
        embedding = ParquetEmbeddings(file, column)
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
    files = sorted((folder / "img_emb").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise StepError(f"{folder / 'img_emb'}: holds no .npy files")
    for file in files:
        metadata = folder / "metadata" / f"{file.stem.replace('img_emb', 'metadata')}.parquet"
        embedding = _matrix(file)
        labels, keys = _described(metadata, head, label_name)
        _check_partner(metadata, len(labels), file, len(embedding))
        yield Source(file, embedding, labels, keys or _numbered(file, len(embedding)))


def _metadata(file: Path, label_name: str | None) -> pa.Table:
    try:
        names = read_schema(file).names
        if label_name is not None and label_name not in names:
            raise StepError(
                f"{file}: no column {label_name!r}; found: {', '.join(names)}. "
                "Name the column of the labels with --label-column, or take in unlabelled rows with --no-labels"
            )
        wanted = [name for name in (*_KEY_NAMES, label_name) if name in names]
        # Without a column Parquet would not say how many rows there are.
        return pq.ParquetFile(parquet_source(file)).read(columns=wanted or names[:1])
    except FileNotFoundError as error:
        raise StepError(f"{file}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise StepError(f"{file}: no whole Parquet file ({error}); copy it again") from error


def _array_labels(file: Path, labels: np.ndarray, head: Head) -> list[str | None]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and head.task == "multilabel" and labels.shape[1] == len(head.labels):
        return _labels(file, labels.tolist(), head, by_column=True)
    if labels.ndim == 2 and head.task in ("binary", "multiclass") and labels.shape[1] == len(head.class_names):
        return _one_hot_labels(file, labels, head)
    if labels.ndim != 1 or head.task == "multilabel":
        wanted = f"(n, {len(head.labels)})" if head.task == "multilabel" else "(n,)"
        raise StepError(f"{file}: shape {labels.shape}, expected {wanted} for the {head.task} head {head.name}")
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
    return _checked_matrix(file, load_array(file))


def _checked_matrix(file: Path, matrix: np.ndarray) -> np.ndarray:
    if matrix.ndim == 3 and matrix.shape[1] == 1:
        matrix = matrix[:, 0]
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
