"""Reads embeddings that files hold already, a block of rows at a time, and what is beside them about each row.

a.npy                                             (n, D); a folder of them, without y.npy and y_….npy, which are labels
a.npz                                             (n, D), called x, X, embeddings or features
img_emb/img_emb_0.npy, metadata/metadata_0.parquet, …     clip-retrieval
a.parquet, or a folder of them                    a column of lists: embedding, image_embedding, img_emb, …

Embeddings may also be (n, 1, D). Nothing in a file is run: arrays of Python objects are refused.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.types import is_fixed_size_list, is_large_list, is_list

from clipsieve.arrow_paths import arrow_source, read_schema
from clipsieve.exceptions import TableError

EMBEDDING_COLUMNS = ("embedding", "image_embedding", "img_emb", "clip_embedding", "embeddings")
EMBEDDING_ARRAYS = ("x", "X", "embeddings", "features")

_NPY_MAGIC = b"\x93NUMPY"


class ParquetEmbeddings:
    """(n, D) of a Parquet file's column of lists, read by slices of rows; one row group is in memory at a time."""

    def __init__(self, file: Path, column: str, may_lack: bool = False) -> None:
        """
        Args:
            may_lack: a row without an embedding, as `clipsieve embed` writes for an image that failed, is one of NaN;
                otherwise it is refused.

        Raises:
            TableError: the file is not whole, holds no rows, or its rows have no values.
        """
        self._file = file
        self._column = column
        self._may_lack = may_lack
        self._held: tuple[int, np.ndarray] = (-1, np.empty((0, 0)))
        counts = _row_group_sizes(file)
        self._ends = np.cumsum([0, *counts])
        if not self._ends[-1]:
            raise TableError(f"{file}: holds no rows")
        self._width = 0
        for group in range(len(counts)):
            self._width, self.dtype = self._first_width(group)
            if self._width:
                break
        self.shape = (int(self._ends[-1]), self._width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The rows of a slice without a step.

        Raises:
            TableError: their lists differ in length, or a row has none.
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

    def _first_width(self, group: int) -> tuple[int, np.dtype]:
        lists = self._lists(group)
        widths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return int(next(iter(widths[widths > 0]), 0)), np.dtype(lists.type.value_type.to_pandas_dtype())

    def _read(self, group: int) -> np.ndarray:
        lists = self._lists(group)
        widths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        values = lists.flatten()
        lacking = widths == 0
        odd = np.flatnonzero((widths != self._width) & ~lacking if self._may_lack else widths != self._width)
        if len(odd) or values.null_count:
            row = int(self._ends[group]) + (int(odd[0]) if len(odd) else 0)
            problem = (
                f"{widths[odd[0]]} values, others {self._width}" if len(odd) else "or follows one that has empty values"
            )
            raise TableError(f"{self._file}: row {row} of {self._column!r} has {problem}; remove it or embed it again")
        flat = values.to_numpy(zero_copy_only=False)
        if flat.dtype.kind != "f":
            raise TableError(f"{self._file}: {self._column!r} holds {flat.dtype}, expected float16 or float32")
        if not lacking.any():
            return flat.reshape(len(widths), self._width)
        rows = np.full((len(widths), self._width), np.nan, flat.dtype)
        rows[~lacking] = flat.reshape(-1, self._width)
        return rows

    def _lists(self, group: int) -> pa.ListArray:
        try:
            with pq.ParquetFile(arrow_source(self._file)) as parquet:
                lists = parquet.read_row_group(group, columns=[self._column]).column(0).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise not_whole(self._file, error) from error
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks)
        if not (is_list(lists.type) or is_large_list(lists.type) or is_fixed_size_list(lists.type)):
            raise TableError(f"{self._file}: {self._column!r} holds {lists.type}, expected lists of numbers")
        # of a fixed size, or large
        return lists if is_list(lists.type) else lists.cast(pa.list_(lists.type.value_type))


@dataclass(frozen=True)
class EmbeddingFile:
    """One file of embeddings, and the table that describes its rows."""

    file: Path
    embedding: np.ndarray | ParquetEmbeddings
    """(n, D) float16, float32 or float64, read as its rows are used."""
    metadata: Path | None = None
    """A Parquet file with one row for each; it may be the same file."""
    embedding_column: str | None = None
    """The column of the metadata that holds the embeddings, if one does."""

    def __len__(self) -> int:
        return len(self.embedding)


def embedding_files(data: Path) -> list[EmbeddingFile]:
    """The files of embeddings of a data set, in one of the layouts above, in the order of their names.

    Args:
        data: a .npy, .npz or .parquet, or a folder.

    Raises:
        TableError: there are none; one cannot be read, or its metadata has another number of rows.
    """
    if (data / "img_emb").is_dir():
        return [_of_clip_retrieval(file) for file in clip_retrieval_files(data)]
    if not data.exists():
        raise TableError(f"{data}: no such file or folder")
    files = [data] if data.is_file() else sorted(data.iterdir())
    readers = {".npy": _of_npy, ".npz": _of_npz, ".parquet": _of_parquet}
    known = [file for file in files if file.suffix.lower() in readers and not _is_labels(file)]
    if not known:
        raise TableError(f"{data}: holds no embeddings: .npy, .npz or .parquet files, or img_emb/ and metadata/")
    return [readers[file.suffix.lower()](file) for file in known]


def clip_retrieval_files(folder: Path) -> list[Path]:
    """The .npy files in img_emb/, by their numbers.

    Raises:
        TableError: there are none.
    """
    files = sorted((folder / "img_emb").glob("*.npy"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise TableError(f"{folder / 'img_emb'}: holds no .npy files")
    return files


def metadata_beside(file: Path) -> Path:
    """The metadata of one of clip-retrieval's img_emb files."""
    return file.parent.parent / "metadata" / f"{file.stem.replace('img_emb', 'metadata')}.parquet"


def embedding_column(file: Path) -> str:
    """The column of a Parquet file that holds embeddings.

    Raises:
        TableError: it has none, or is not whole.
    """
    names = column_names_of(file)
    column = next((name for name in EMBEDDING_COLUMNS if name in names), None)
    if column is None:
        raise TableError(f"{file}: no column {' or '.join(EMBEDDING_COLUMNS)}; it has: {', '.join(names)}")
    return column


def column_names_of(file: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        TableError: no such file, or it is not whole.
    """
    try:
        return read_schema(file).names
    except FileNotFoundError as error:
        raise TableError(f"{file}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise not_whole(file, error) from error


def load_array(file: Path) -> np.ndarray:
    """A .npy file, mapped: its values are read when they are used, and nothing in it is run.

    Raises:
        TableError: there is no such file, it is cut off or no .npy, or it holds Python objects.
    """
    try:
        with file.open("rb") as start:
            if start.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise ValueError("it does not begin as one")
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise TableError(f"{file}: no such file") from error
    except (ValueError, OSError, EOFError) as error:
        if "Python objects" in str(error):
            raise TableError(
                f"{file}: holds Python objects (dtype object), a pickle that could run code, and is not read; "
                "save plain numbers with numpy.save"
            ) from error
        size = file.stat().st_size
        raise TableError(f"{file}: no whole .npy file, {size} bytes ({error}); copy or save it again") from error


def load_named_array(file: Path, names: tuple[str, ...]) -> np.ndarray:
    """The array of a .npz file that has one of the names.

    Raises:
        TableError: none has; the file is not whole, or holds Python objects.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            name = next((name for name in names if name in arrays), None)
            if name is None:
                raise TableError(f"{file}: needs an array {' or '.join(names)}, has {', '.join(arrays) or 'none'}")
            return arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, TableError):
            raise
        objects = "Python objects are a pickle that could run code" if "allow_pickle" in str(error) else str(error)
        raise TableError(f"{file}: no whole .npz file of plain numbers ({objects}); save it again") from error


def matrix_of(file: Path, array: np.ndarray) -> np.ndarray:
    """(n, D) of an array in a file, which may be (n, 1, D).

    Raises:
        TableError: another shape, or no floating-point numbers.
    """
    if array.ndim == 3 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 2 or array.dtype.kind != "f":
        raise TableError(f"{file}: shape {array.shape} of {array.dtype}, expected (rows, values) of float16 or float32")
    return array


def not_whole(file: Path, error: Exception) -> TableError:
    """Make the error of a Parquet file that cannot be read."""
    return TableError(f"{file}: no whole Parquet file ({error}); copy it again")


def _of_npy(file: Path) -> EmbeddingFile:
    return EmbeddingFile(file, matrix_of(file, load_array(file)))


def _of_npz(file: Path) -> EmbeddingFile:
    return EmbeddingFile(file, matrix_of(file, load_named_array(file, EMBEDDING_ARRAYS)))


def _of_parquet(file: Path) -> EmbeddingFile:
    column = embedding_column(file)
    return EmbeddingFile(file, ParquetEmbeddings(file, column, may_lack=True), file, column)


def _of_clip_retrieval(file: Path) -> EmbeddingFile:
    embedding, metadata = matrix_of(file, load_array(file)), metadata_beside(file)
    rows = sum(_row_group_sizes(metadata))
    if rows != len(embedding):
        raise TableError(f"{metadata}: {rows} rows, but {file} has {len(embedding)}; they do not belong together")
    return EmbeddingFile(file, embedding, metadata)


def _row_group_sizes(file: Path) -> list[int]:
    try:
        about = pq.read_metadata(arrow_source(file))
    except FileNotFoundError as error:
        raise TableError(f"{file}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise not_whole(file, error) from error
    return [about.row_group(group).num_rows for group in range(about.num_row_groups)]


def _is_labels(file: Path) -> bool:
    return file.suffix.lower() == ".npy" and (file.stem == "y" or file.stem.startswith("y_"))
