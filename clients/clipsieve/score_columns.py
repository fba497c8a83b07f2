"""Recognises the columns of a table of scores by their names, which `scoring.Columns` gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def score_columns(names: Sequence[str]) -> list[str]:
    """The columns that hold scores."""
    return [name for name in names if name == "probability" or name.endswith("_score")]


def decision_column(score: str, names: Sequence[str]) -> str | None:
    """The decisions or classes of a column `…_score`: the label's, or those of the head that it is a label of."""
    head = score.removesuffix("_score")
    while head:
        for name in (f"{head}_decision", f"{head}_class_name"):
            if name in names:
                return name
        head = head.rpartition("_")[0]
        if f"{head}_score" in names:  # another head, of a shorter name
            return None
    return None


def score_from_cell(value: Any, column: str | None) -> float | None:
    """The number in a cell; None for an empty one and for what is not finite.

    Raises:
        ValueError: it is no number; names the column.
    """
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} is {value!r:.60}, expected a number") from None
    return score if math.isfinite(score) else None
