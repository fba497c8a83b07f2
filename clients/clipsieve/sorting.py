"""The rows of a table in another order, and the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def sort_column(names: Sequence[str], score_names: Sequence[str], by: str) -> str:
    """The column that `score`, `path` or a column's own name means.

    Raises:
        ValueError: there is no such column.
    """
    if by in names:
        return by
    if by == "path":
        return names[0]
    if by == "score" and score_names:
        return score_names[0]
    raise ValueError(f"cannot sort by {by!r}; use score, path or one of {', '.join(names)}")


def sorted_tables(tables: Iterable[pa.Table], column: str, top: int | None) -> Iterator[pa.Table]:
    """The rows in order of a column, numbers from the highest and texts from the first, rows without one last.

    Args:
        top: only so many. Then as many rows and one table are in memory; otherwise all of them.
    """
    import pyarrow as pa

    best: list[pa.Table] = []
    for table in tables:
        best.append(table)
        if top is not None:
            best = [_sorted(pa.concat_tables(best), column).slice(0, top)]
    if best:
        yield _sorted(pa.concat_tables(best), column)


def _sorted(table: pa.Table, column: str) -> pa.Table:
    import pyarrow as pa

    is_text = table.schema.field(column).type == pa.string()
    return table.sort_by([(column, "ascending" if is_text else "descending")])
