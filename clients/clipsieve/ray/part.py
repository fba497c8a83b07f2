"""One output file of a bulk job: a Parquet that says in its own metadata that it is whole, and what scored it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clipsieve.joined import Unmatched, joined_table, read_metadata
from clipsieve.outputs import table_from_rows
from clipsieve.ray.storage import locate, whole_file
from clipsieve.scoring import Row

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = "clipsieve"
"""Key of the Parquet's metadata; its value is a `Part` in JSON."""

_ROW_GROUP = 8192


@dataclass(frozen=True)
class Part:
    """Content of an output file, by its metadata."""

    run_id: str
    rows: int
    failures: dict[str, int] = field(default_factory=dict)
    """Rows with an error, by its code."""
    model_versions: list[str] = field(default_factory=list)
    """Versions in the rows that have a score; one, unless changes were allowed."""
    columns: list[str] = field(default_factory=list)


def read_part(name: str, run_id: str) -> Part | None:
    """Read a file's metadata; None when it is not there, damaged, or of another run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        filesystem, path = locate(name)
        with filesystem.open_input_file(path) as file, pq.ParquetFile(file) as table:
            metadata = table.metadata
            part = Part(**json.loads(metadata.metadata[METADATA.encode()]))
            return part if part.rows == metadata.num_rows and part.run_id == run_id else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def metadata_at(name: str) -> pa.Table | None:
    """The table that lies beside a shard; None when there is none, or it has scores alone or no keys.

    Raises:
        OSError: it is there, and cannot be read.
    """
    import pyarrow as pa

    filesystem, path = locate(name)
    if not filesystem.get_file_info(path).is_file:
        return None
    try:
        with filesystem.open_input_file(path) as file:
            return read_metadata(file)
    except pa.ArrowException as error:
        raise OSError(f"{name} is damaged: {error}") from None


async def write_part(name: str, run_id: str, rows: AsyncGenerator[Row, None], schema: pa.Schema) -> Part:
    """Write rows as they come, a row group at a time; the file is there when all are. Raises what `rows` raises."""
    import pyarrow.parquet as pq

    with whole_file(name) as file, pq.ParquetWriter(file, schema) as writer:
        counted = _Counted(schema, writer.write_table)
        async with aclosing(rows):
            async for row in rows:
                counted.add(row)
        part = counted.finished(run_id)
        writer.add_key_value_metadata({METADATA: json.dumps(asdict(part))})
    return part


async def write_joined_part(
    name: str, run_id: str, rows: AsyncGenerator[Row, None], schema: pa.Schema, metadata: pa.Table, source: str
) -> tuple[Part, Unmatched]:
    """`write_part` with the rows and columns of a table that lies beside the shard; a shard's rows fit into memory.

    Raises:
        OutputRefused: the metadata has a key twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [schema.empty_table()]
    counted = _Counted(schema, tables.append)
    async with aclosing(rows):
        async for row in rows:
            counted.add(row)
    part = counted.finished(run_id)
    table, unmatched = joined_table(metadata, pa.concat_tables(tables), source)
    part = replace(part, rows=table.num_rows)
    kept = {key: value for key, value in table.schema.metadata.items() if key != METADATA.encode()}
    table = table.replace_schema_metadata(kept)  # the part's columns say which are scores
    with whole_file(name) as file, pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table, _ROW_GROUP)
        writer.add_key_value_metadata({METADATA: json.dumps(asdict(part))})
    return part, unmatched


class _Counted:
    """Rows on their way into a table, and what becomes of them."""

    def __init__(self, schema: pa.Schema, write: Callable[[pa.Table], None]) -> None:
        self._schema, self._write = schema, write
        self._error, self._version = (schema.names.index(name) for name in ("error", "model_version"))
        self._waiting: list[Row] = []
        self._rows = 0
        self._failures: Counter[str] = Counter()
        self._versions: dict[str, None] = {}

    def add(self, row: Row) -> None:
        self._rows += 1
        self._waiting.append(row)
        if row[self._error] is not None:
            self._failures[_code(row[self._error])] += 1
        else:
            self._versions[row[self._version]] = None
        if len(self._waiting) == _ROW_GROUP:
            self._flush()

    def finished(self, run_id: str) -> Part:
        if self._waiting:
            self._flush()
        return Part(run_id, self._rows, dict(self._failures), list(self._versions), self._schema.names)

    def _flush(self) -> None:
        self._write(table_from_rows(self._waiting, self._schema))
        self._waiting = []


def _code(error: Any) -> str:
    return str(error).partition(":")[0]
