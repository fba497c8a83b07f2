"""Figures as people read them, and tables of them: in Markdown, on the page of results and on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]

MOST_ROWS = 40
MOST_VALUES = 8
SECONDS = {"hour": 3600, "minute": 60, "second": 1}
UNITS = {"_ms": "ms", "_s": "s", "_us": "µs", "_mib": "MiB", "_gib": "GiB"}


def table(rows: Sequence[Row], columns: Mapping[str, str] | None = None, aligned: bool = False) -> str:
    """A Markdown table with a line for each row; columns of numbers are aligned at the right.

    Args:
        columns: headings by key; without them, a column for every key that one of the rows has.
        aligned: pad the cells so that they stand under one another, for a terminal. Otherwise, of more than MOST_ROWS
            rows only the number is shown.
    """
    if len(rows) > MOST_ROWS and not aligned:
        return f"({len(rows)} rows, in the JSON)"
    columns = columns or {key: heading(key) for row in rows for key in row}
    numeric = [all(row.get(key) is None or isinstance(row[key], int | float) for row in rows) for key in columns]
    lines = [[*columns.values()], ["---:" if each else "---" for each in numeric]]
    lines += [[cell(row[key]) if key in row else "" for key in columns] for row in rows]
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines[1] = ["-" * (width - 1) + (":" if each else "-") for width, each in zip(widths, numeric, strict=True)]
        lines = [
            [
                text.rjust(width) if each else text.ljust(width)
                for text, width, each in zip(line, widths, numeric, strict=True)
            ]
            for line in lines
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
    """Print the rows to stdout, aligned."""
    print(table(rows, columns, aligned=True), flush=True)


def cell(value: object) -> str:
    """One line that cannot end the cell."""
    return re.sub(r"\s+", " ", words(value)).replace("|", "\\|")


def words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{heading(str(key))} {words(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "none" if len(value) <= MOST_VALUES else f"{len(value)} values"
    return number(value) if value is None or isinstance(value, int | float) else str(value)


def number(value: float | None) -> str:
    """Format a number with its meaningful digits; near 1, where cosines are, with six decimals."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if value != 1 and abs(value - 1) < 0.01:
        return f"{value:.6f}".rstrip("0").rstrip(".")
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format a duration as precisely as it can be repeated: `46 seconds`, `13 minutes`."""
    unit = next((name for name, length in SECONDS.items() if seconds >= 1.5 * length), "second")
    return f"{round(seconds / SECONDS[unit])} {unit}s"


def heading(key: str) -> str:
    """`images_per_s` → `images/s`, `cold_start_s` → `cold start, s`."""
    if f"_{key}" in UNITS:
        return UNITS[f"_{key}"]
    key = key.replace("_per_s", "/s")
    for ending, unit in UNITS.items():
        if key.endswith(ending) and len(key) > len(ending):
            key = f"{key.removesuffix(ending)}, {unit}"
            break
    return key.replace("_per_", "/").replace("_", " ")


def sentence(text: str) -> str:
    """Capitalise the first letter; `str.capitalize` would make the others small."""
    return text[:1].upper() + text[1:]
