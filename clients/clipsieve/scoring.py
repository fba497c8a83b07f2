"""One code path from images to rows of the result table: the command line and bulk jobs both come through here.

With one binary head the columns are `image_path, probability, prediction, class_name, decision, error, model_version`.
Otherwise they are `image_path`, then for each head

    <head>_score           binary, regression, ranking: float32
    <head>_<label>_score   multiclass, multilabel: float32, one for each label
    <head>_deviation       a head that gives the standard deviation of its score: float32
    <head>_decision        binary, and a regression or ranking that has thresholds: allow, review or block
    <head>_<label>_decision   multilabel
    <head>_class_name      binary, multiclass

and `error, model_version`. A head with one threshold decides allow or block, with several the scores between
the first and the last are for review. When a server does not say how many thresholds a head has, the
decision is the number that the score passed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipsieve.blocking import Client
from clipsieve.client import AsyncClient
from clipsieve.exceptions import ClipsieveError, ImageRejected, UnknownThreshold, VersionChanged
from clipsieve.images import ImageSource
from clipsieve.paths import text_from_path
from clipsieve.results import Embedding, Head, HeadScore, Score, Threshold
from clipsieve.score_columns import score_columns

if TYPE_CHECKING:
    import pyarrow as pa

Item = tuple[str, "ImageSource | ImageRejected"]
"""Name of a row, usually the path, and the image; or the error that takes its place."""

Row = tuple[Any, ...]
"""Values in the order of the columns; None where there is none."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table of scores; makes the row of a result.

    Args:
        heads: in the order of the columns.
        threshold: for one binary head: its class is the positive one at or above it, instead of the head's own.
        operating_point: decide by this one of each head's thresholds.
        key: name of the first column.

    Raises:
        UnknownThreshold: the threshold or the operating point does not fit the heads.
        ClipsieveError: two heads would have columns of the same name.
    """

    heads: tuple[Head, ...]
    threshold: float | None = None
    operating_point: str | None = None
    key: str = "image_path"

    def __post_init__(self) -> None:
        _check_threshold(self)
        if self.operating_point is not None:
            for head in self.heads:
                _chosen_threshold(head, self.operating_point)
        double = [name for name, count in Counter(self.names).items() if count > 1]
        if double:
            raise ClipsieveError(f"two columns would be called {double[0]!r}; score these heads into separate tables")

    @property
    def is_plain(self) -> bool:
        """True for the seven columns of one binary head."""
        return len(self.heads) == 1 and self.heads[0].task == "binary" and self.key == "image_path"

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self._typed()]

    @property
    def score_names(self) -> list[str]:
        """The columns that hold scores."""
        return ["probability"] if self.is_plain else score_columns(self.names)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        types = {"string": pa.string(), "float": pa.float32(), "int": pa.int32()}
        return pa.schema([(name, types[kind]) for name, kind in self._typed()])

    def row(self, key: str, score: Score) -> Row:
        """The row of one result; an image without a score has only its key and error.

        Args:
            key: a path or a sample's key; written so that `paths.path_from_text` gives it back.
        """
        text = text_from_path(key)
        if score.error is not None:
            return (text, *[None] * (len(self.names) - 3), text_from_path(str(score.error)), None)
        cells = [cell for head in self.heads for cell in self._cells(head, score.heads[head.name])]
        return (text, *cells, None, score.model_version)

    def _typed(self) -> list[tuple[str, str]]:
        if self.is_plain:
            middle = [("probability", "float"), ("prediction", "int"), ("class_name", "string"), ("decision", "string")]
        else:
            middle = [column for head in self.heads for column in _wide_columns(head)]
        return [(self.key, "string"), *middle, ("error", "string"), ("model_version", "string")]

    def _cells(self, head: Head, result: HeadScore) -> Iterator[Any]:
        decisions = self._decisions(head, result)
        class_name = head.class_of(result.scores, decisions)
        if self.is_plain:
            band = self._band(head, 0, int(decisions[0]))
            yield from (shortest(result.scores[0]), int(decisions[0] >= 1), class_name, band)
            return
        yield from map(shortest, result.scores)
        if head.gives_deviation:
            yield None if result.deviation is None else shortest(result.deviation)
        if _decides(head):
            yield from (self._band(head, label, decision) for label, decision in enumerate(decisions))
        if _has_classes(head):
            yield class_name

    def _decisions(self, head: Head, result: HeadScore) -> np.ndarray:
        """(L,) int32: thresholds passed, of those that count here."""
        if self.threshold is not None and head.task == "binary":
            return (result.scores >= np.float32(self.threshold)).astype(np.int32)
        if self.operating_point is not None and _decides(head):
            places = _chosen_threshold(head, self.operating_point)
            return (result.decisions > np.array(places)).astype(np.int32)
        return result.decisions

    def _band(self, head: Head, label: int, decision: int) -> str:
        if self.operating_point is not None or self.threshold is not None:
            return "block" if decision else "allow"
        if head.thresholds is None:
            return str(decision)
        return band_of(decision, len(head.thresholds[label]))


def band_of(passed: int, thresholds: int) -> str:
    """Name the decision about a score by how many of its thresholds it passed: allow, review or block."""
    if passed == 0:
        return "allow"
    return "block" if passed >= thresholds else "review"


def rows_schema(heads: Sequence[Head], key: str = "image_path") -> pa.Schema:
    """The columns of a table of scores by these heads."""
    return Columns(tuple(heads), key=key).schema()


def score_rows(client: Client, items: Iterable[Item], columns: Columns) -> Iterator[Row]:
    """One row per item, in order, as they come. Raises what `client.score_stream` raises."""
    keys: deque[str] = deque()
    for score in client.score_stream(_images(items, keys), [head.name for head in columns.heads]):
        yield columns.row(keys.popleft(), score)


async def stream_rows(
    client: AsyncClient, items: Iterable[Item], columns: Columns, versions: Versions
) -> AsyncGenerator[Row, None]:
    """`score_rows` on an event loop.

    Raises:
        VersionChanged: a row came from another head than `versions` allows; the rows before have been yielded.
    """
    keys: deque[str] = deque()
    scores = client.score_stream(_images(items, keys), [head.name for head in columns.heads])
    async with aclosing(scores):
        async for score in scores:
            versions.check(score.model_version)
            yield columns.row(keys.popleft(), score)


async def stream_embeddings(client: AsyncClient, items: Iterable[Item]) -> AsyncGenerator[Row, None]:
    """One row (path, vector or None, error or None) per item, in order, as they come."""
    keys: deque[str] = deque()
    async with aclosing(client.embed_stream(_images(items, keys))) as embeddings:
        async for embedding in embeddings:
            yield _embedding_row(keys.popleft(), embedding)


class Versions:
    """The model version of a run, which its rows must share unless changes are allowed."""

    def __init__(self, known: str | None, changes_allowed: bool) -> None:
        self.known = known
        self._changes_allowed = changes_allowed

    def check(self, version: str) -> None:
        """Raises VersionChanged."""
        if not version or version == self.known:
            return
        if self.known is not None and not self._changes_allowed:
            raise VersionChanged(f"the model version changed from {self.known} to {version}")
        self.known = version


def embedding_schema() -> pa.Schema:
    import pyarrow as pa

    # Not a fixed-size list: one with nulls did not survive a round trip with pyarrow 25.
    return pa.schema([("image_path", pa.string()), ("embedding", pa.list_(pa.float32())), ("error", pa.string())])


def shortest(value: np.floating[Any] | float) -> float:
    """The shortest digits that are this float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))


def _images(items: Iterable[Item], keys: deque[str]) -> Iterator[Any]:
    for key, image in items:
        keys.append(key)
        yield image


def _embedding_row(key: str, embedding: Embedding) -> Row:
    error = text_from_path(str(embedding.error)) if embedding.error else None
    return text_from_path(key), embedding.vector if embedding.ok else None, error


def _wide_columns(head: Head) -> list[tuple[str, str]]:
    names = [head.name] if head.is_single else [f"{head.name}_{label}" for label in head.labels]
    columns = [(f"{name}_score", "float") for name in names]
    columns += [(f"{head.name}_deviation", "float")] if head.gives_deviation else []
    if _decides(head):
        columns += [(f"{name}_decision", "string") for name in names]
    if _has_classes(head):
        columns.append((f"{head.name}_class_name", "string"))
    return columns


def _decides(head: Head) -> bool:
    """True when the head's decisions are a column; of a multiclass head the class is."""
    return head.task in ("binary", "multilabel") or (
        head.task in ("regression", "ranking") and any(head.thresholds or ())
    )


def _has_classes(head: Head) -> bool:
    return head.task in ("binary", "multiclass")


def _check_threshold(columns: Columns) -> None:
    if columns.threshold is None:
        return
    if columns.operating_point is not None:
        raise UnknownThreshold("a threshold and an operating point cannot both decide; give one of them")
    if len(columns.heads) != 1 or columns.heads[0].task != "binary":
        heads = ", ".join(f"{head.name} ({head.task})" for head in columns.heads)
        raise UnknownThreshold(f"a threshold is for one binary head, these are {heads}; name one with --head")


def _chosen_threshold(head: Head, operating_point: str) -> list[int]:
    """Place of the threshold of that name, for each label; empty for heads that decide nothing.

    Raises:
        UnknownThreshold: the head has no such one, or the server does not say which it has.
    """
    if not _decides(head):
        return []
    if head.thresholds is None:
        problem = f"the server does not say which operating points head {head.name!r} has"
        raise UnknownThreshold(f"{problem}; stamp its repository anew, or give --threshold")
    return [_place(head, label, row, operating_point) for label, row in zip(head.labels, head.thresholds, strict=True)]


def _place(head: Head, label: str, thresholds: Sequence[Threshold], operating_point: str) -> int:
    names = [threshold.operating_point for threshold in thresholds]
    if operating_point not in names:
        problem = f"head {head.name!r} has no operating point {operating_point!r} for {label!r}"
        raise UnknownThreshold(f"{problem}; it has: {', '.join(names) or 'none'}")
    return names.index(operating_point)
