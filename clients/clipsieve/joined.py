"""Scores joined with the table that lies beside a shard: img2dataset and NeMo write one with a row for each sample.

That table is its owner's: its rows and columns stay, and behind them come the scores, matched by key. A table that has
been joined says in its schema which columns are scores, so that scoring again replaces those alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipsieve.exceptions import OutputRefused, TableError
from clipsieve.table_batches import column_names

if TYPE_CHECKING:
    import pyarrow as pa

KEY_COLUMNS = ("key", "__key__")

_MARK = b"clipsieve"
_NO_SAMPLE = "NO_SAMPLE: the shard has no sample of this key"
_OURS = frozenset({"error", "model_version", "probability", "prediction", "class_name", "decision", "embedding"})
_OURS_END = ("_score", "_deviation", "_decision", "_class_name")
_NAMES = frozenset({"image_path", "video_path", "key", "shard"})


@dataclass(frozen=True)
class Unmatched:
    """Rows and samples that have no partner."""

    rows: int
    """Rows of the table whose key no sample has, such as downloads that failed."""
    samples: int
    """Samples whose key no row has; they are rows at the end."""

    def summary(self) -> str:
        """Empty when all have a partner."""
        parts = []
        if self.rows:
            parts.append(f"rows without a sample: {self.rows}")
        if self.samples:
            parts.append(f"samples without a row, added at its end: {self.samples}")
        return ", ".join(parts)


def is_scores_alone(names: Sequence[str]) -> bool:
    """True for the columns of a table that a command of this package writes by itself."""
    known = all(name in _OURS or name in _NAMES or name.endswith(_OURS_END) for name in names)
    return known and "error" in names and len(names) > 1


def is_written_by_us(path: Path) -> bool:
    """True for a table that a command of this package made: of scores, also of videos or beside metadata; a list.

    Not for one that belongs to somebody else and had scores added to it.

    Raises:
        TableError: it is no table.
    """
    names = column_names(path)
    if path.suffix.lower() == ".parquet" and own_columns(path) is not None:
        return False
    is_list = len(names) in (3, 4) and names[0] in _NAMES and names[-1] == "error"
    return {"error", "model_version"} <= set(names) or is_list


def check_replaceable(path: Path) -> None:
    """Refuse to replace a table that this package did not write, whatever --overwrite says.

    Raises:
        OutputRefused: it has columns of somebody else, or is no table at all.
    """
    suffix = path.suffix.lower()
    if not path.is_file() or path.stat().st_size == 0 or suffix not in (".parquet", ".csv", ".json", ".jsonl"):
        return
    try:
        is_ours, names = is_written_by_us(path), column_names(path)
    except TableError:
        is_ours, names = False, []
    if not is_ours:
        columns = f"its columns are {', '.join(names[:8])}" if names else "it is no table"
        raise OutputRefused(
            f"{path} was not written by clipsieve ({columns:.200}), and --overwrite does not replace it; move it away, "
            "or name another --out"
        )


def own_columns(path: Path) -> list[str] | None:
    """The columns of scores in a table that was joined; None for any other table."""
    import pyarrow.parquet as pq

    return _own_columns(pq.read_schema(path))


def _own_columns(schema: pa.Schema) -> list[str] | None:
    mark = (schema.metadata or {}).get(_MARK)
    return json.loads(mark)["columns"] if mark else None


def is_metadata(path: Path) -> bool:
    """True for a Parquet beside a shard with columns that are not ours, joined with scores or not.

    Raises:
        OutputRefused: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return not is_scores_alone(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise OutputRefused(f"{path} is damaged ({error}); move it away, or name another --out") from None


def read_metadata(source: Any) -> pa.Table | None:
    """The table beside a shard, of a path or an open file; None when it has scores alone, or no keys.

    Raises:
        pa.ArrowException: it is damaged.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        names = file.schema_arrow.names
        return None if is_scores_alone(names) or not any(name in names for name in KEY_COLUMNS) else file.read()


def joined_table(table: pa.Table, scores: pa.Table, name: str) -> tuple[pa.Table, Unmatched]:
    """The rows and columns of the metadata, with the scores of the sample of each row's key behind them.

    Args:
        table: the metadata; it has one of KEY_COLUMNS.
        scores: its first column is the key; each sample once.
        name: of the metadata, for messages.

    Raises:
        OutputRefused: the metadata has a key twice.
    """
    import pyarrow as pa

    key = next(name for name in KEY_COLUMNS if name in table.column_names)
    own = [name for name in scores.column_names if name != "key"]
    earlier = {*own, *(_own_columns(table.schema) or [])} - {key}
    table = table.select([name for name in table.column_names if name not in earlier])
    keys = [str(value) for value in table[key].to_pylist()]
    row_of = {each: row for row, each in enumerate(keys)}
    if len(row_of) < len(keys):
        raise OutputRefused(f"{name}: {len(keys) - len(row_of)} keys come more than once; scores have no one row")
    sample_keys = scores.column(0).to_pylist()
    sample_of = {name: sample for sample, name in enumerate(sample_keys)}
    added = [name for name in sample_keys if name not in row_of]
    places = pa.array([sample_of.get(name) for name in keys] + [sample_of[name] for name in added], pa.int64())
    rows = pa.array([*range(len(keys)), *([None] * len(added))], pa.int64())
    result = table.take(rows)
    new_keys = pa.array([*table[key].to_pylist(), *added], table.schema.field(key).type)
    result = result.set_column(result.column_names.index(key), table.schema.field(key), new_keys)
    for name in own:
        column = scores[name].take(places)
        if name == "error":
            column = _with_missing(column, places)
        result = result.append_column(scores.schema.field(name), column)
    mark = {**(table.schema.metadata or {}), _MARK: json.dumps({"columns": own}).encode()}
    missing = sum(name not in sample_of for name in keys)
    return result.replace_schema_metadata(mark), Unmatched(missing, len(added))


def key_column(metadata: Path) -> str | None:
    """The column of keys in a Parquet file; None when it has none."""
    names = column_names(metadata)
    return next((name for name in KEY_COLUMNS if name in names), None)


def _with_missing(errors: pa.ChunkedArray, places: pa.Array) -> pa.Array:
    """The errors, and one for each row without a sample."""
    import pyarrow as pa

    pairs = zip(errors.to_pylist(), places.to_pylist(), strict=True)
    return pa.array([_NO_SAMPLE if place is None else error for error, place in pairs], pa.string())
