"""The rows of a table in another order, and the first of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Order:
    """The order of rows, and how many of them."""

    column: str
    top: int | None = None
    reverse: bool = False


def sorted_tables(tables: Iterable[pa.Table], order: Order) -> Iterator[pa.Table]:
    """The rows in order of a column, numbers from the highest and texts from the first; or in the reverse order.

    Rows without a value are last in both. Of the first rows alone, as many and one table are in memory; else all rows.
    """
    import pyarrow as pa

    best: list[pa.Table] = []
    for table in tables:
        best.append(table)
        if order.top is not None:
            best = [_sorted(pa.concat_tables(best), order).slice(0, order.top)]
    if best:
        yield _sorted(pa.concat_tables(best), order)


def _sorted(table: pa.Table, order: Order) -> pa.Table:
    import pyarrow as pa

    is_text = table.schema.field(order.column).type == pa.string()
    return table.sort_by([(order.column, "ascending" if is_text != order.reverse else "descending")])
