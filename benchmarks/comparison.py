"""A measured figure beside its target: in code, in the JSON line and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.tables import number, table

MET = {True: "met", False: "**missed**", None: "not measured"}


@dataclass(frozen=True)
class Comparison:
    """A ratio or a difference with a target."""

    name: str
    value: float | None
    """The measured value; None when one of the two was not measured."""
    target: float
    at_least: bool
    """True when the target is a lower limit."""
    against: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def comparisons_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Rounded to six digits, which a cosine near 1 needs, and without NaN."""
    return [rounded(asdict(row), 6) | {"met": row.met} for row in comparisons]


def comparison_table(rows: Sequence[Mapping[str, Any]], aligned: bool = False) -> str:
    """A row for each of the dicts that `comparisons_json` gives."""
    shown = [
        {
            "target": row["name"],
            "found": row["value"],
            "asked": f"{'at least' if row['at_least'] else 'at most'} {number(row['target'])}",
            "": MET[row["met"]],
            "against": row.get("against") or "",
        }
        for row in rows
    ]
    return table(shown, aligned=aligned)


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats with so many significant digits, None for NaN and infinity, in dicts and lists of any depth."""
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each, digits) for each in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
