"""Splits rows into train, validation and test: stratified, seeded, and no content on two sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.errors import StepError


@dataclass(frozen=True)
class Split:
    """Disjoint row numbers that together are all rows; each ascending."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_rows(
    labels: np.ndarray,  # (n,) int, index into class_names
    contents: list[str],  # (n,) sha256 of each file
    class_names: list[str],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> Split:
    """Give each class's different contents to the three parts by the same fractions, at least one to each.

    Equal contents have equal labels and go to one part together.

    Raises:
        StepError: a class has fewer than three different contents, or the fractions leave nothing to train on.
    """
    if test_fraction + validation_fraction >= 1:
        raise StepError(
            f"fit.test_fraction {test_fraction} and fit.validation_fraction {validation_fraction} "
            "leave nothing to train on; their sum must be below 1"
        )
    rng = np.random.default_rng(seed)
    part_of: dict[str, int] = {}
    sums = np.array(contents)
    for label, name in enumerate(class_names):
        distinct = np.unique(sums[labels == label])
        _check_count(name, len(distinct))
        sizes = _part_sizes(len(distinct), test_fraction, validation_fraction)
        numbers = np.repeat([0, 1, 2], sizes)
        part_of.update(zip(rng.permutation(distinct).tolist(), numbers.tolist(), strict=True))
    parts = np.array([part_of[content] for content in contents])
    return Split(*(np.flatnonzero(parts == number) for number in range(3)))


def _part_sizes(count: int, test_fraction: float, validation_fraction: float) -> tuple[int, int, int]:
    """How many of `count` go to train, validation and test; never none."""
    test = min(max(1, round(count * test_fraction)), count - 2)
    validation = min(max(1, round(count * validation_fraction)), count - test - 1)
    return count - test - validation, validation, test


def _check_count(name: str, count: int) -> None:
    if count < 3:
        raise StepError(
            f"class {name!r} has {count} different {'image' if count == 1 else 'images'} in the store; a split into "
            "train, validation and test needs at least 3, and a useful head hundreds: embed more"
        )
