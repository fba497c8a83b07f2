"""The rows of a store that a head is fitted to: their labels as numbers, refused where they do not fit the task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes.head_section import GRADED, Head, Task
from training.errors import StepError
from training.labels import LabelError, label_matrix
from training.leakage import Groups, group_rows
from training.split import Split, saved_split
from training.store_view import Embeddings, Pictures


@dataclass(frozen=True)
class Labelled:
    """The rows a head is fitted to."""

    embedding: np.ndarray  # (n, embed_dim) float32
    label: np.ndarray  # (n,) index into class_names; multilabel (n, L) 0 or 1; regression (n,) float
    sha256: list[str]
    row: np.ndarray = field(default_factory=lambda: np.array([], int))  # (n,) number of the row in the store
    choices: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))  # (m, 2) rows: better, other

    @property
    def fingerprint(self) -> str:
        """Equal images with equal labels and choices have equal fingerprints, wherever they lie."""
        lines = sorted(f"{content} {label}\n" for content, label in zip(self.sha256, self.label.tolist(), strict=True))
        lines += sorted(f"{self.sha256[better]} > {self.sha256[other]}\n" for better, other in self.choices.tolist())
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def labelled_rows(embeddings: Embeddings, class_names: list[str], task: Task = "binary") -> Labelled:
    """The rows that have a label, checked.

    Raises:
        StepError: a label that does not fit the task, only one class, or an embedding that is not finite.
    """
    rows = [row for row, label in enumerate(embeddings.label) if label is not None]
    texts = [str(embeddings.label[row]) for row in rows]
    names = [embeddings.path[row] for row in rows]
    label = _labels(texts, names, class_names, task)
    matrix = embeddings.embedding[rows]
    _check_finite(matrix, names)
    row = np.array(rows, int)
    choices = choices_among(embeddings.pictures.choices, row) if task in GRADED else np.zeros((0, 2), np.int64)
    return Labelled(matrix, label, [embeddings.sha256[row] for row in rows], row, choices)


def choices_among(choices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of (m, 2) choices whose pictures are both among the ascending rows, by their places there."""
    kept = choices[np.isin(choices, rows).all(axis=1)]
    return np.searchsorted(rows, kept).astype(np.int64)


def grouped_split(data: Labelled, pictures: Pictures, head: Head, folder: Path) -> tuple[Groups, Split]:
    """The groups of the rows that keep to one side of a split, and the split as it was drawn before, or is drawn now.

    Args:
        data: the labelled rows.
        pictures: of the head, of which `data.row` are the labelled ones.
        head: whose `fit` says how to split.
        folder: of the head's labels in the store.
    """
    together = [pictures.group[row] for row in data.row]
    groups = group_rows(data.sha256, data.embedding, head.fit.near_duplicate_cosine, together)
    prescribed = [pictures.split[row] for row in data.row]
    strata = strata_of(data, head.task)
    return groups, saved_split(folder, strata, data.sha256, head.class_names, head.fit, groups.ids, prescribed)


def targets_of(label: np.ndarray, task: Task, label_count: int) -> np.ndarray:
    """`Labelled.label` → (n, L) float32: one column per score, 0 or 1, of a regression the value."""
    if task == "multiclass":
        return (label[:, None] == np.arange(label_count)).astype(np.float32)
    return label.reshape(len(label), -1).astype(np.float32)


def strata_of(data: Labelled, task: Task) -> np.ndarray | None:
    """Return what the parts of the split hold equal shares of: classes, or labels; nothing of a regression."""
    return None if task in GRADED else data.label


def _labels(texts: list[str], names: list[str], class_names: list[str], task: Task) -> np.ndarray:
    if task in GRADED:
        return _numbers(texts, names)
    if task == "multilabel":
        return _label_sets(texts, names, class_names)
    _check_classes(texts, class_names)
    number_of = {name: number for number, name in enumerate(class_names)}
    return np.array([number_of[text] for text in texts])


def _numbers(texts: list[str], names: list[str]) -> np.ndarray:
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            continue
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        row = broken[0]
        raise StepError(
            f"{len(broken)} labels are no finite numbers, the first of them {texts[row]!r} of {names[row]}; "
            "a regression needs numbers, another task class names"
        )
    if len(values) == 0 or values.min() == values.max():
        raise StepError(f"the store has {len(values)} labelled images, all of one value; a regression needs several")
    return values


def _label_sets(texts: list[str], names: list[str], class_names: list[str]) -> np.ndarray:
    """(n, L) 0 or 1, with enough rows on either side of each label."""
    try:
        label = label_matrix(texts, class_names)
    except LabelError as error:
        raise StepError(f"{error}; a multilabel head's class_names must name every label of the store") from error
    for column, name in zip(label.T, class_names, strict=True):
        if min(column.sum(), (1 - column).sum()) < 3:
            raise StepError(
                f"label {name!r} is on {int(column.sum())} of {len(names)} images; a head needs at least 3 with it "
                "and 3 without: label more images, or take it out of class_names"
            )
    return label


def _check_classes(names: list[str], class_names: list[str]) -> None:
    present = sorted(set(names))
    unknown = [name for name in present if name not in class_names]
    if unknown:
        raise StepError(f"the store has labels {unknown}, the head's class_names are {class_names}; rename one of them")
    if len(present) < len(class_names):
        needed = f"both {class_names[0]} and {class_names[1]}" if len(class_names) == 2 else ", ".join(class_names)
        raise StepError(
            f"the store has labelled images of {', '.join(present) or 'no class'} only; "
            f"a head needs {needed}: embed the missing ones"
        )


def _check_finite(matrix: np.ndarray, paths: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        first = ", ".join(paths[row] for row in broken[:3])
        raise StepError(
            f"{len(broken)} of {len(paths)} embeddings are not finite, the first of them: {first}. "
            "Delete the store and embed again; if that does not help, the encoder overflows on these images."
        )
