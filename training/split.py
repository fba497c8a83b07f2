"""Splits rows into train, validation and test: stratified, seeded, and no group on two sides.

`split_rows` draws a split; `saved_split` remembers it with the labels, so that a later fit, evaluation or
audit with the same settings sees the same sides, and rows that were added since join without moving others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from recipes.head_section import Fit
from training.errors import StepError
from training.parquet_files import append_table, index_in, read_tables
from training.store_view import SIDES

_FREE = -1
_LEFT_OUT = -2


@dataclass(frozen=True)
class Split:
    """Disjoint row numbers that, with those left out, are all rows; each ascending."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows of groups that were fixed on two sides; only their rows on the most held-out side are kept."""

    def parts(self) -> dict[str, np.ndarray]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_rows(
    labels: np.ndarray | None,
    contents: list[str],
    class_names: list[str],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    groups: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    open_sides: tuple[int, ...] = (0, 1, 2),
) -> Split:
    """Give the rows of each class to the three parts by the same fractions, whole groups at a time.

    Args:
        labels: (n,) int, index into class_names; (n, L) 0/1 for several labels a row, where a row counts for
            the rarest of its labels; None does not stratify.
        contents: (n,) sha256 of each row. The split follows contents and not the order of rows.
        class_names: for messages.
        test_fraction: of the rows.
        validation_fraction: of the rows.
        seed: of the draw.
        groups: (n,) int; rows of one group go to one part, and equal contents must have one group, as
            `training.leakage.group_rows` gives them. By default each content is a group.
        fixed: (n,) index into SIDES of rows whose side is known, -1 for the others.
        open_sides: indexes into SIDES that rows may be drawn for; the others hold fixed rows alone.

    Raises:
        StepError: a class has fewer than three groups, or the fractions leave nothing to train on.
    """
    if test_fraction + validation_fraction >= 1:
        raise StepError(
            f"fit.test_fraction {test_fraction} and fit.validation_fraction {validation_fraction} "
            "leave nothing to train on; their sum must be below 1"
        )
    sums = np.array(contents, np.bytes_)
    groups = _canonical(sums if groups is None else groups, sums)
    strata = _strata(labels, len(sums))
    stratum_of = _majority(groups, strata)
    sizes = np.bincount(groups)
    sides = np.full(len(sums), _FREE) if fixed is None else fixed.astype(np.int64)
    side_of = np.full(len(sizes), _FREE)
    np.maximum.at(side_of, groups, sides)
    contradicted = _contradicted(groups, sides, side_of)[groups] & (side_of[groups] != sides)
    rng = np.random.default_rng(seed)
    named = labels is not None and labels.ndim == 1
    for stratum in range(len(class_names)) if named else np.unique(stratum_of):
        members = np.flatnonzero(stratum_of == stratum)
        if named:
            _check_count(class_names[stratum], len(members))
        counts = _part_sizes(int(sizes[members].sum()), test_fraction, validation_fraction)
        side_of[members] = _filled(sizes[members], side_of[members], counts, rng, open_sides)
        if named:
            _check_sides(class_names[stratum], side_of[members])
    sides_of_rows = np.where(contradicted, _LEFT_OUT, side_of[groups])
    return Split(*(np.flatnonzero(sides_of_rows == side) for side in (*range(len(SIDES)), _LEFT_OUT)))


def saved_split(
    folder: Path,
    labels: np.ndarray | None,
    contents: list[str],
    class_names: list[str],
    fit: Fit,
    groups: np.ndarray | None = None,
    prescribed: list[str | None] | None = None,
) -> Split:
    """`split_rows` as it was drawn before for this store and these settings, and drawn on for new rows.

    Args:
        folder: of the head's labels; the sides of new contents are added there.
        labels: as for `split_rows`.
        contents: as for `split_rows`.
        class_names: as for `split_rows`.
        fit: its fractions, seed and near_duplicate_cosine are the settings.
        groups: as for `split_rows`.
        prescribed: (n,) `train`, `validation` or `test` where the data sets say so, which always wins. Where no row is
            given a validation or a test side, that side is drawn from the rows given to train.

    Raises:
        StepError: as `split_rows`, or a prescribed side is none of the three.
    """
    settings = _settings(fit)
    name = f"split-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    fixed = _saved_sides(folder, name, contents)
    open_sides = tuple(range(len(SIDES)))
    if prescribed is not None and any(prescribed):
        by_data = _prescribed_sides(prescribed)
        absent = tuple(side for side in open_sides if side not in by_data)
        if absent:  # what is not prescribed is drawn, and what is prescribed takes no drawn row
            open_sides = tuple(sorted({0, *absent}))
            by_data = np.where(by_data == 0, _FREE, by_data)
            fixed = np.where(np.isin(fixed, open_sides), fixed, _FREE)
        fixed = np.where(by_data == _FREE, fixed, by_data)
    split = split_rows(
        labels, contents, class_names, fit.test_fraction, fit.validation_fraction, fit.seed, groups, fixed, open_sides
    )
    rows = {part: numbers[fixed[numbers] == _FREE] for part, numbers in split.parts().items()}
    new = {contents[row]: part for part, numbers in rows.items() for row in numbers.tolist()}
    if new:
        table = pa.table({"sha256": list(new), "split": list(new.values())})
        append_table(folder, name, table.replace_schema_metadata({"clipsieve.split": settings}))
    return split


def _settings(fit: Fit) -> str:
    keys = ("test_fraction", "validation_fraction", "near_duplicate_cosine", "seed")
    return json.dumps({key: getattr(fit, key) for key in keys})


def _saved_sides(folder: Path, name: str, contents: list[str]) -> np.ndarray:
    """(n,) the side that each content has had since it was first drawn, -1 for new ones."""
    sides = np.full(len(contents), _FREE)
    for table in reversed(read_tables(folder, name, ["sha256", "split"])):  # the first word counts
        place = index_in(pa.array(contents), table["sha256"].combine_chunks())
        known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        words = index_in(table["split"].combine_chunks(), pa.array(SIDES))
        sides[known] = np.asarray(words)[np.asarray(place.drop_null())]
    return sides


def _prescribed_sides(prescribed: list[str | None]) -> np.ndarray:
    unknown = {word for word in prescribed if word is not None} - set(SIDES)
    if unknown:
        raise StepError(f"the data sets prescribe {sorted(unknown)}, expected {', '.join(SIDES)} or nothing")
    return np.array([_FREE if word is None else SIDES.index(word) for word in prescribed], np.int64)


def _canonical(groups: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(n,) the same groups, numbered from 0 in the order of their first content, whatever the order of rows."""
    order = np.argsort(sums, kind="stable")
    _, first, members = np.unique(groups[order], return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    canonical = np.empty(len(sums), np.int64)
    canonical[order] = numbers[members]
    return canonical


def _strata(labels: np.ndarray | None, count: int) -> np.ndarray:
    """(n,) what each row is stratified by."""
    if labels is None:
        return np.zeros(count, np.int64)
    if labels.ndim == 1:
        return labels.astype(np.int64)
    rarity = np.where(labels != 0, labels.sum(axis=0), np.iinfo(np.int64).max)
    return np.where((labels != 0).any(axis=1), rarity.argmin(axis=1), labels.shape[1])


def _majority(groups: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """(groups,) the stratum most of each group's rows are in."""
    span = int(strata.max(initial=0)) + 1
    kinds, counts = np.unique(groups * span + strata, return_counts=True)
    order = np.argsort(counts, kind="stable")
    stratum_of = np.empty(int(groups.max(initial=-1)) + 1, np.int64)
    stratum_of[kinds[order] // span] = kinds[order] % span  # the last word is the most frequent's
    return stratum_of


def _contradicted(groups: np.ndarray, sides: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """(groups,) whether a group has rows fixed on different sides."""
    lowest = np.full(len(highest), len(SIDES))
    fixed = sides != _FREE
    np.minimum.at(lowest, groups[fixed], sides[fixed])
    return lowest < highest


def _part_sizes(count: int, test_fraction: float, validation_fraction: float) -> tuple[int, int, int]:
    """Return how many of `count` go to train, validation and test; never none of three or more."""
    test = max(min(max(1, round(count * test_fraction)), count - 2), 0)
    validation = max(min(max(1, round(count * validation_fraction)), count - test - 1), 0)
    return count - test - validation, validation, test


def _filled(
    sizes: np.ndarray,
    sides: np.ndarray,
    counts: tuple[int, int, int],
    rng: np.random.Generator,
    open_sides: tuple[int, ...],
) -> np.ndarray:
    """(groups,) the side of each: the biggest first, each to the open side that lacks most; none stays empty."""
    sides = sides.copy()
    held = [int(sizes[sides == side].sum()) for side in range(len(SIDES))]
    free = rng.permutation(np.flatnonzero(sides == _FREE))
    free = free[np.argsort(-sizes[free], kind="stable")].tolist()
    for done, group in enumerate(free):
        empty = [side for side in open_sides if not held[side]]
        choice = empty if len(free) - done <= len(empty) else open_sides
        side = max(choice, key=lambda side: counts[side] - held[side])
        sides[group] = side
        held[side] += int(sizes[group])
    return sides


def _check_count(name: str, count: int) -> None:
    if count < 3:
        raise StepError(
            f"class {name!r} has {count} different {'image' if count == 1 else 'images'} in the store (near-duplicates "
            "count once); a split into train, validation and test needs at least 3, and a useful head hundreds: "
            "embed more"
        )


def _check_sides(name: str, sides: np.ndarray) -> None:
    missing = [word for side, word in enumerate(SIDES) if side not in sides]
    if missing:
        raise StepError(
            f"class {name!r} has no images in {' and '.join(missing)} of the split that was saved or prescribed for "
            "this store; embed more of it, prescribe that side for some, or delete its split-* files under labels/ "
            "in the store to draw the split anew"
        )
