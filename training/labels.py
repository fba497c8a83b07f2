"""What a label may be, by the head's task, and how the store's one `label` column holds it.

binary, multiclass   a class name: `nsfw`; where data sets write numbers, the class's index: 0, 1
multilabel           the names that apply, as a JSON list in the order of the recipe: `["gore", "nude"]`, `[]`
regression           a number: `6.5`
no label             null; the row is kept and no head is fitted to it
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recipes.errors import ExpectedError
from recipes.schema import Head


class LabelError(ExpectedError):
    """A label that the head cannot have; the caller knows the file and the row and says so."""


def label_from(value: Any, head: Head) -> str | None:
    """The store's label for what a data set says; None and empty text mean that there is no label.

    Args:
        value: a class name or index, a list of names (multilabel) or a number (regression).
        head: whose task and class_names decide.

    Raises:
        LabelError: naming the value and what would do.
    """
    if _is_missing(value):
        return None
    if head.task == "multilabel":
        return _names(value, head.class_names)
    if head.task == "regression":
        return _number(value)
    return _class_name(value, head.class_names)


def label_from_columns(flags: Iterable[Any], head: Head) -> str | None:
    """The store's label for one 0/1 value per label of a multilabel head, in the order of its labels."""
    names = []
    for name, flag in zip(head.labels, flags, strict=True):
        if _is_missing(flag):
            return None
        if _index(flag) not in (0, 1):
            raise LabelError(f"{name} is {_shown(flag)}, expected 0 or 1")
        names += [name] * (_index(flag) or 0)
    return json.dumps(names)


def names_in(label: str) -> list[str]:
    """The names in a multilabel row's label.

    Raises:
        LabelError: it is no JSON list of names.
    """
    try:
        names = json.loads(label)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LabelError(f'label {label!r} is no list of names, such as ["gore", "nude"]')
    return names


def label_matrix(labels: Sequence[str], class_names: list[str]) -> np.ndarray:
    """(n, L) int64 of 0 and 1 for the labels of n rows of a multilabel head.

    Raises:
        LabelError: a label is no list, or has a name that is none of the class_names.
    """
    matrix = np.zeros((len(labels), len(class_names)), np.int64)
    place = {name: column for column, name in enumerate(class_names)}
    for row, label in enumerate(labels):
        for name in names_in(label):
            if name not in place:
                raise LabelError(f"label {name!r} is not one of {class_names}")
            matrix[row, place[name]] = 1
    return matrix


def _class_name(value: Any, class_names: list[str]) -> str:
    if isinstance(value, str) and value.strip() in class_names:
        return value.strip()
    index = _index(value)
    if index is None or not 0 <= index < len(class_names):
        numbers = "0 or 1" if len(class_names) == 2 else f"0 to {len(class_names) - 1}"
        raise LabelError(f"label {_shown(value)} is neither {numbers} nor one of {', '.join(class_names)}")
    return class_names[index]


def _names(value: Any, class_names: list[str]) -> str:
    names = names_in(value) if isinstance(value, str) else list(value) if _is_list(value) else None
    if names is None:
        raise LabelError(f"label {_shown(value)} is no list of names")
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise LabelError(f"label {_shown(unknown[0])} is not one of {', '.join(class_names)}")
    return json.dumps([name for name in class_names if name in names])


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"label {_shown(value)} is no finite number")
    return repr(number)


def _index(value: Any) -> int | None:
    """A whole number, however it is written: 1, 1.0, True, "1"."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
