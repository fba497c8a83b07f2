"""Opens files by any path for Arrow, which takes none that is not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_source(file: Path) -> Path | pa.NativeFile:
    """Return what Arrow opens: the path, or, where it is not UTF-8, the open file."""
    import pyarrow as pa

    try:
        str(file).encode()
    except UnicodeEncodeError:
        return pa.OSFile(os.fsencode(file))
    return file


def read_schema(file: Path) -> pa.Schema:
    """Read a Parquet file's schema, as `pyarrow.parquet.read_schema` does."""
    import pyarrow.parquet as pq

    return pq.read_schema(arrow_source(file))
