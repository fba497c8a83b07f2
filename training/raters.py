"""Joins rows of one image: several raters, or a table that repeats itself.

regression      the mean of the numbers; their spread is printed
classes, lists  the majority's; CONFLICTING_LABELS where two have as many votes
split, group    must agree: CONFLICTING_SPLITS, CONFLICTING_GROUPS

A row without a label has no vote.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from recipes.head_section import GRADED, Head
from training.sample import DataSet, Failure, Sample

Rows = Sequence[tuple[int, Sample]]


def merge_rows(rows: Rows, where: Callable[[int], str], head: Head, data: DataSet) -> None:
    """Add one sample, or one failure, to the data for each image, in the order of their first rows.

    Args:
        rows: the samples with the numbers of their rows.
        where: names a row in a message.
        head: whose task decides how labels are joined.
        data: takes samples, failures and notes.
    """
    by_image: dict[str, list[tuple[int, Sample]]] = {}
    for number, sample in rows:
        by_image.setdefault(sample.stored_path, []).append((number, sample))
    for image in by_image.values():
        merged = _merged(image, where, head.task)
        (data.failures if isinstance(merged, Failure) else data.samples).append(merged)  # type: ignore[arg-type]
    rated = [[s.label for _, s in image if s.label is not None] for image in by_image.values()]
    data.notes.extend(_notes([labels for labels in rated if len(labels) > 1], head.task))


def _merged(image: Rows, where: Callable[[int], str], task: str) -> Sample | Failure:
    _, first = image[0]
    if len(image) == 1:
        return first
    split = _agreed(image, where, lambda sample: sample.split, "split", "CONFLICTING_SPLITS")
    group = _agreed(image, where, lambda sample: sample.group, "group", "CONFLICTING_GROUPS")
    for conflict in (split, group):
        if isinstance(conflict, Failure):
            return conflict
    labelled = [(number, sample) for number, sample in image if sample.label is not None]
    label = _mean(labelled) if task in GRADED else _majority(labelled, where)
    return label if isinstance(label, Failure) else replace(first, label=label, split=split, group=group)


def _mean(labelled: Rows) -> str | None:
    numbers = [float(sample.label) for _, sample in labelled if sample.label is not None]
    return repr(statistics.fmean(numbers)) if numbers else None


def _majority(labelled: Rows, where: Callable[[int], str]) -> str | Failure | None:
    votes = Counter(sample.label for _, sample in labelled).most_common(2)
    if len(votes) < 2 or votes[0][1] > votes[1][1]:
        return votes[0][0] if votes else None
    places = [next(number for number, sample in labelled if sample.label == label) for label, _ in votes]
    says = " and ".join(f"{label} in {where(number)}" for (label, _), number in zip(votes, places, strict=True))
    return Failure(labelled[0][1].stored_path, "CONFLICTING_LABELS", f"labelled {says}; remove one")


def _agreed(
    image: Rows, where: Callable[[int], str], value_of: Callable[[Sample], str | None], what: str, code: str
) -> str | Failure | None:
    """The value that all rows with one agree on."""
    first: dict[str, int] = {}
    for number, sample in image:
        value = value_of(sample)
        if value is not None:
            first.setdefault(value, number)
    if len(first) < 2:
        return next(iter(first), None)
    says = " and ".join(f"{value} in {where(number)}" for value, number in list(first.items())[:2])
    return Failure(image[0][1].stored_path, code, f"its {what} is {says}; give one")


def _notes(rated: list[list[str]], task: str) -> list[str]:
    """Say how several labels of one image were joined."""
    if not rated:
        return []
    counts = sorted({len(labels) for labels in rated})
    raters = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    if task in GRADED:
        spreads = [max(map(float, labels)) - min(map(float, labels)) for labels in rated]
        spread = f"median spread (highest less lowest) {statistics.median(spreads):.3g}"
        return [f"labels: mean of {raters} raters an image for {len(rated)} images, {spread}"]
    divided = sum(len(set(labels)) > 1 for labels in rated)
    return [f"labels: majority of {raters} rows an image for {len(rated)} images, {divided} of them not unanimous"]
