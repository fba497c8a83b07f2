"""Scores of pictures beside the truth: the figures of any score file, and its errors, the largest first.

    python -m training.analyse scores.csv --truth grades.csv --out errors.csv
    python -m training.analyse theirs.json --truth scores.json --divider 1300
    python -m training.analyse scores.csv --truth choices.csv          # winner,loser

A score file is a table of paths and numbers: what clipsieve score writes, or another tool's CSV, JSON (also an object
of paths and numbers), JSON lines or Parquet. The truth is such a table of grades, or one of choices, of which the share
in the right order is counted. Pictures are matched by their names as they are written, else by the files that they
name, else by file names that only one picture has. A picture in several rows has their mean.

The figures are those of training.fit: MSE, MAE, AB (pairs in the right order), Spearman, Pearson and accuracy at the
divider, with 95 % intervals. MSE and MAE say nothing where scores are in other units than grades; the order does. --out
writes a row for each picture: path, truth, score, error, rank_error (by how much of all pictures it is placed too
high). Prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from clipsieve.exceptions import TableError
from clipsieve.lists import column_like, path_column, path_from_cell
from clipsieve.score_columns import score_columns
from clipsieve.table_batches import numbered_rows
from common.manifest import write_atomically
from common.writing import check_writable
from recipes.errors import run_step
from training.choices import is_choices, read_choices
from training.errors import INTERRUPTED, StepError
from training.grades import ab_of_choices, divider_of, figures_line
from training.intervals import wilson
from training.metrics import regression_metrics
from training.progress import say

_NAMES = ("score", "label", "grade", "rating", "value", "probability")
_FEWEST = 3
_MOST_NAMED = 3


@dataclass(frozen=True)
class Values:
    """Numbers of pictures, as a file gives them."""

    file: Path
    value: dict[str, float]
    notes: list[str]


def read_values(file: Path, column: str | None = None) -> Values:
    """The number of each picture in a table.

    Args:
        file: a table of paths and numbers.
        column: name of the numbers' column; by default one of the usual names, or the only column of scores.

    Raises:
        StepError: the file cannot be read, has no such column, or holds a number that is not finite.
    """
    numbers: dict[str, list[float]] = {}
    empty = 0
    try:
        rows = list(numbered_rows(file, mapping=("path", "score")))
    except TableError as error:
        raise StepError(str(error)) from error
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    path_name = path_column(names)
    if path_name is None:
        raise StepError(f"{file}: no column of paths; found: {', '.join(names) or 'none'}")
    value_name = _value_column(file, names, column)
    for number, row in rows:
        try:
            path = path_from_cell(row.get(path_name))
        except ValueError as error:
            raise StepError(f"{file}: row {number}: {path_name} {error}; name an image") from error
        value = _number(row.get(value_name), f"{file}: row {number} ({path}): {value_name}")
        if value is None:
            empty += 1
        else:
            numbers.setdefault(path, []).append(value)
    several = sum(len(values) > 1 for values in numbers.values())
    notes = [f"{file.name}: {empty} rows have no {value_name}"] if empty else []
    notes += [f"{file.name}: {several} pictures are in several rows and have their mean"] if several else []
    return Values(file, {path: float(np.mean(values)) for path, values in numbers.items()}, notes)


@dataclass(frozen=True)
class Matched:
    """Pictures that have both a score and a truth."""

    name: list[str]
    truth: np.ndarray  # (n,)
    score: np.ndarray  # (n,)
    notes: list[str]


def matched(scores: Values, truth: Values) -> Matched:
    """Join scores with the truth, in the truth's order.

    Raises:
        StepError: fewer than three pictures have both.
    """
    find = finder(scores)
    names = {name: found for name in truth.value if (found := find(name, truth.file)) is not None}
    notes = [*scores.notes, *truth.notes]
    notes += _missing("pictures of the truth have no score", [name for name in truth.value if name not in names])
    used = set(names.values())
    notes += _missing("scored pictures have no truth", [name for name in scores.value if name not in used])
    if len(names) < _FEWEST:
        raise StepError(
            f"{len(names)} pictures of {truth.file} have a score in {scores.file}, which takes {_FEWEST}; "
            f"the truth names {_first(truth.value)}, the scores {_first(scores.value)}"
        )
    return Matched(
        list(names),
        np.array([truth.value[name] for name in names]),
        np.array([scores.value[found] for found in names.values()]),
        notes,
    )


def finder(scores: Values) -> Callable[[str, Path], str | None]:
    """Give a function that says what the scores call a picture of another file, or None."""
    by_file = {_resolved(name, scores.file): name for name in scores.value}
    by_base: dict[str, list[str]] = {}
    for name in scores.value:
        by_base.setdefault(Path(name).name, []).append(name)

    def find(name: str, file: Path) -> str | None:
        if name in scores.value:
            return name
        if (same := by_file.get(_resolved(name, file))) is not None:
            return same
        names = by_base.get(Path(name).name, [])
        return names[0] if len(names) == 1 else None

    return find


def errors_csv(pictures: Matched, by: str = "error") -> str:
    """The pictures with their errors, the largest first."""
    error = pictures.score - pictures.truth
    count = max(len(error) - 1, 1)
    rank_error = (rankdata(pictures.score) - rankdata(pictures.truth)) / count
    order = np.argsort(-np.abs(error if by == "error" else rank_error), kind="stable")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "truth", "score", "error", "rank_error"])
    for row in order.tolist():
        numbers = (pictures.truth[row], pictures.score[row], error[row], rank_error[row])
        writer.writerow([pictures.name[row], *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()


def choice_figures(scores: Values, file: Path) -> dict[str, Any]:
    """How many choices the scores order as they were made.

    Raises:
        StepError: no choice is between two scored pictures.
    """
    choices = read_choices(file)
    find = finder(scores)
    names = [find(name, file) for name in choices.paths]
    known = np.array([name is not None for name in names])
    pairs = choices.pairs[known[choices.pairs].all(axis=1)]
    if not len(pairs):
        raise StepError(
            f"no choice of {file} is between two pictures of {scores.file}: the choices name "
            f"{_first(dict.fromkeys(choices.paths))}, the scores {_first(scores.value)}"
        )
    values = np.array([math.nan if name is None else scores.value[name] for name in names])
    order = ab_of_choices(pairs, values)
    share = float(order.ab or 0)
    return {
        "n": int(known.sum()),
        "ab": share,
        "ab_95_interval": list(wilson(share, order.pairs)),
        "ab_pairs": order.pairs,
        "ab_tied_scores": order.tied,
        "choices_left_out": len(choices.pairs) - len(pairs) + len(choices.problems),
    }


def _value_column(file: Path, names: list[str], column: str | None) -> str:
    if column is not None:
        same = column_like(names, column)
        if same is None:
            raise StepError(f"{file}: no column {column!r}; found: {', '.join(names)}")
        return same
    for name in _NAMES:
        if (same := column_like(names, name)) is not None:
            return same
    ours = score_columns(names)
    if len(ours) != 1:
        raise StepError(f"{file}: name the column of the numbers with --score-column or --truth-column: {names}")
    return ours[0]


def _number(value: Any, where: str) -> float | None:
    """A finite number; None for an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise StepError(f"{where} is {value!r:.60}, no finite number; leave the cell empty where there is none")
    return number


def _resolved(name: str, file: Path) -> str:
    """The file that a table names: below the table's folder, or below the current one if it is there."""
    path = file.parent / name
    return str((path if path.exists() or not Path(name).exists() else Path(name)).resolve())


def _missing(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}, the first: {', '.join(names[:_MOST_NAMED])}"] if names else []


def _first(names: dict[str, Any]) -> str:
    return repr(next(iter(names))) if names else "nothing"


def _divider(text: str) -> Any:
    return text if text in ("median", "none") else float(text)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.analyse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", type=Path, help="table of paths and scores")
    parser.add_argument("--truth", type=Path, required=True, help="table of paths and grades, or of winner and loser")
    parser.add_argument("--score-column", help="of the scores; default: score, label, grade, … or the only _score")
    parser.add_argument("--truth-column", help="of the grades")
    parser.add_argument("--divider", type=_divider, default="median", help="grade of a good picture; default: median")
    parser.add_argument("--out", type=Path, help="CSV of the errors per picture, the largest first")
    parser.add_argument("--by", choices=["error", "rank"], default="error", help="order of --out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    if arguments.out:
        check_writable(arguments.out.parent)
    scores = read_values(arguments.scores, arguments.score_column)
    if is_choices(arguments.truth):
        if arguments.out:
            raise StepError("--out lists errors of grades; choices say of no picture how far off its score is")
        figures, notes = choice_figures(scores, arguments.truth), scores.notes
    else:
        pictures = matched(scores, read_values(arguments.truth, arguments.truth_column))
        divider = divider_of(arguments.divider, pictures.truth)
        figures, notes = regression_metrics(pictures.truth, pictures.score, 0, divider), pictures.notes
        if arguments.out:
            write_atomically(arguments.out, errors_csv(pictures, arguments.by).encode(errors="surrogateescape"))
    for note in notes:
        say(note)
    say(figures_line(arguments.scores.name, figures))
    print(json.dumps(figures, indent=2, allow_nan=False))


if __name__ == "__main__":
    sys.exit(run_step("training.analyse", main, INTERRUPTED))
