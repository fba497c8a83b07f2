"""Rows of scores of stored embeddings: the columns of their metadata, and behind them those of the heads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsieve.arrow_paths import arrow_source, read_schema
from clipsieve.client import AsyncClient
from clipsieve.embedding_files import EmbeddingFile
from clipsieve.exceptions import ImageRejected, InputRefused, TableError
from clipsieve.results import EmbeddingScores, Head, HeadScore, Score
from clipsieve.scoring import Columns, Row, Versions

KEY = "embedding"
"""The first column where no metadata says what a row is: `a.npy#17`."""

BLOCK_ROWS = 8192
_LENGTH_TOLERANCE = 0.01  # float16 keeps a vector's length within 0.001


@dataclass(frozen=True)
class EmbeddingColumns:
    """Columns of the table: the metadata's own, and behind them those of `columns`."""

    metadata: pa.Schema
    """Without embeddings, and without what an earlier run wrote."""
    replaced: tuple[str, ...]
    """Columns of the metadata that this table has anew."""
    columns: Columns

    @classmethod
    def of(cls, files: Sequence[EmbeddingFile], columns: Columns) -> EmbeddingColumns:
        """
        Args:
            files: in one table.
            columns: of the heads; their key is `KEY`.

        Raises:
            TableError: the metadata of two files cannot be one table.
        """
        schemas = [_described_by(file) for file in files]
        try:
            joined = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise TableError(f"the metadata of {files[0].file.parent} differs from file to file: {error}") from error
        ours = set(columns.names)
        kept = pa.schema([field for field in joined if field.name not in ours])
        return cls(kept, tuple(name for name in joined.names if name in ours - {KEY}), columns)

    def schema(self) -> pa.Schema:
        own = list(self.columns.schema())
        return pa.schema([*self.metadata, *own[1:]] if len(self.metadata) else own)

    def rows(self, metadata: _Metadata, start: int, scores: Sequence[Score]) -> list[Row]:
        """The rows of a block of a file that begins at `start`."""
        name = metadata.file.file.name
        own = [self.columns.row(f"{name}#{start + row}", score) for row, score in enumerate(scores)]
        if not len(self.metadata):
            return own
        table = metadata.rows(start, start + len(scores))
        empty = [None] * len(scores)
        cells = [table[name].to_pylist() if name in table.column_names else empty for name in self.metadata.names]
        return [(*values, *row[1:]) for *values, row in zip(*cells, own, strict=True)]


async def stream_embedding_rows(
    client: AsyncClient, files: Sequence[EmbeddingFile], table: EmbeddingColumns, versions: Versions, skip: int = 0
) -> AsyncGenerator[Row, None]:
    """Score all embeddings with all heads; yields their rows in order.

    An embedding with a value that is not finite, or of nothing but zeros, is a row with an error: `clipsieve embed`
    writes the former for an image that failed.

    Args:
        skip: rows at the start that are done already.

    Raises:
        InputRefused: embeddings of another width or length than those of the server's encoder.
        VersionChanged: a head was replaced in between, unless `versions` allows it.
    """
    dim, length = await client.embed_dim(), await _length_on(client)
    for file in files:
        if file.embedding.shape[1] != dim:
            raise InputRefused(
                f"{file.file}: embeddings have {file.embedding.shape[1]} values, those of the server's encoder {dim}"
            )
    for file in files:
        first = min(skip, len(file))
        skip -= first
        with _Metadata(file) as metadata:
            for start in range(first, len(file), BLOCK_ROWS):
                block = np.asarray(file.embedding[start : start + BLOCK_ROWS], np.float32)
                good = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
                _check_length(file, start, block, good, length)
                heads = table.columns.heads
                by_head = [(head, await client.score_embeddings(head.name, block[good])) for head in heads]
                scores = _scores(by_head, good)
                versions.check(next((score.model_version for score in scores if score.ok), ""))
                for row in table.rows(metadata, start, scores):
                    yield row


def _scores(by_head: list[tuple[Head, EmbeddingScores]], good: np.ndarray) -> list[Score]:
    """One score for each row; `good` says of which rows the heads' answers are."""
    answers = iter(
        Score(
            None,
            {
                head.name: HeadScore(
                    result.scores[row],
                    result.decisions[row],
                    head.class_of(result.scores[row], result.decisions[row]),
                    result.version,
                    None if result.deviations is None else float(result.deviations[row]),
                )
                for head, result in by_head
            },
        )
        for row in range(int(good.sum()))
    )
    missing = Score(None, error=ImageRejected("NO_EMBEDDING", "its values are not finite, or all 0"))
    return [next(answers) if known else missing for known in good.tolist()]


async def _length_on(client: AsyncClient) -> float | None:
    """The length of the embeddings that the server's encoder gives, if all have one: 1, where it normalises them."""
    from PIL import Image

    drawn = [Image.new("RGB", (64, 64), colour) for colour in ("white", "teal")]
    lengths = [float(np.linalg.norm(each.vector)) for each in await client.embed(drawn) if each.ok]
    return 1.0 if lengths and np.allclose(lengths, 1, atol=_LENGTH_TOLERANCE) else None


def _check_length(file: EmbeddingFile, start: int, block: np.ndarray, good: np.ndarray, length: float | None) -> None:
    if length is None:
        return
    lengths = np.linalg.norm(block, axis=1)
    wrong = np.flatnonzero(good & (np.abs(lengths - length) > _LENGTH_TOLERANCE))
    if len(wrong):
        raise InputRefused(
            f"{file.file}: row {start + wrong[0]} has length {lengths[wrong[0]]:.3f}, but the server's encoder "
            "normalises its embeddings to 1; divide each row by its length, or embed the images with that encoder"
        )


def _described_by(file: EmbeddingFile) -> pa.Schema:
    if file.metadata is None:
        return pa.schema([])
    return pa.schema([field for field in read_schema(file.metadata) if field.name != file.embedding_column])


class _Metadata:
    """The table beside a file of embeddings, which is opened once for all its blocks; a context manager."""

    def __init__(self, file: EmbeddingFile) -> None:
        self.file = file
        self._names = _described_by(file).names
        self._parquet = None if file.metadata is None else pq.ParquetFile(arrow_source(file.metadata))
        self._ends = np.cumsum([0, *_sizes_of_row_groups(self._parquet)])

    def __enter__(self) -> _Metadata:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def rows(self, start: int, stop: int) -> pa.Table:
        """Some of its rows; a block lies in few row groups."""
        if self._parquet is None:
            return pa.table({})
        ends = self._ends
        within = [n for n in range(len(ends) - 1) if ends[n] < stop and ends[n + 1] > start]
        table = self._parquet.read_row_groups(within, columns=self._names)
        return table.slice(start - int(ends[within[0]]), stop - start)


def _sizes_of_row_groups(parquet: pq.ParquetFile | None) -> list[int]:
    if parquet is None:
        return []
    return [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
