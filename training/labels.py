"""Reads labels: what one may be, by the head's task, and how the store's one `label` column holds it.

binary, multiclass   a class name: `nsfw`; where data sets write numbers, the class's index: 0, 1
multilabel           the names that apply, as a JSON list in the order of the recipe: `["gore", "nude"]`, `[]`
regression           a number: `6.5`
no label             null; the row is kept and no head is fitted to it

A name is matched after Unicode's NFC normalisation (macOS decomposes the names of folders) and without spaces around
it; another case is refused. Where all class_names are numbers, as of stars from 1 to 5, a number is a name and never an
index: 3, 3.0 and "3" are the class `3`. Where only some are, a number that is both an index and another class's name is
refused. No label is an empty cell, null or NaN; the words `nan`, `null` and `None` are refused, unless a class has that
name.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from recipes.errors import ExpectedError
from recipes.head_section import Head

_WORDS_FOR_NOTHING = ("nan", "null", "none", "na", "n/a", "nil", "-", "?")
_MOST_NAMED = 50


class LabelError(ExpectedError):
    """A label that the head cannot have; the caller knows the file and the row and says so."""


def check_classes_listed(head: Head) -> None:
    """Refuse to read labels for a head of a classifier whose recipe leaves its classes to the model's config.

    Raises:
        LabelError: it does.
    """
    if not head.class_names:
        raise LabelError(
            f"head {head.name}: labelled pictures calibrate the model's own classes; list those as class_names, which "
            "the recipe leaves out"
        )


def normalised(name: str) -> str:
    """The spelling by which names are compared: NFC, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def class_called(text: str, class_names: Sequence[str]) -> str | None:
    """The class of this name, as the recipe spells it; None where there is none."""
    return _lookup(tuple(class_names)).by_text.get(normalised(text))


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
    if head.is_graded:
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


@dataclass(frozen=True)
class _Lookup:
    """The class_names of a head, by what may stand for them."""

    by_text: dict[str, str]
    by_number: dict[float, str]
    """Without the numbers that two names have, such as 1 and 01."""
    all_numbers: bool


@lru_cache(maxsize=16)
def _lookup(class_names: tuple[str, ...]) -> _Lookup:
    numbers = [_finite(name) for name in class_names]
    once = {number: name for number, name in zip(numbers, class_names, strict=True) if numbers.count(number) == 1}
    return _Lookup(
        {normalised(name): name for name in class_names},
        {number: name for number, name in once.items() if number is not None},
        None not in numbers,
    )


def _class_name(value: Any, class_names: list[str]) -> str:
    lookup = _lookup(tuple(class_names))
    name = lookup.by_text.get(normalised(value)) if isinstance(value, str) else None
    number = _finite(value)
    if number is None:
        if name is None:
            raise LabelError(_no_class(value, class_names))
        return name
    name = name or lookup.by_number.get(number)
    if lookup.all_numbers:
        if name is None:
            raise LabelError(
                f"label {_shown(value)} is none of the class_names, which are numbers: {_listed(class_names)}"
            )
        return name
    return _indexed(value, number, name, class_names)


def _indexed(value: Any, number: float, name: str | None, class_names: list[str]) -> str:
    """The class of a number where not all names are numbers: its index, its name, or both where they agree."""
    index = int(number) if number.is_integer() and 0 <= number < len(class_names) else None
    if name is None and index is None:
        raise LabelError(_no_class(value, class_names))
    if name is None or index is None:
        return name if index is None else class_names[index]  # type: ignore[return-value]
    if class_names[index] != name:
        raise LabelError(
            f"label {_shown(value)} is the name of one class and the index of another, {class_names[index]!r}; "
            f"in the recipe and the data, give the class {name!r} a name that is no number"
        )
    return name


def _no_class(value: Any, class_names: list[str]) -> str:
    numbers = "0 or 1" if len(class_names) == 2 else f"0 to {len(class_names) - 1}"
    problem = f"label {_shown(value)} is neither {numbers} nor one of {_listed(class_names)}"
    return problem + _hint(value, class_names)


def _hint(value: Any, class_names: list[str]) -> str:
    """Suggest what was probably meant."""
    text = normalised(value).casefold() if isinstance(value, str) else ""
    near = next((name for name in class_names if normalised(name).casefold() == text), None)
    if near is not None:
        return f"; upper and lower case differ: write {near!r}, or rename the class in the recipe"
    return "; leave the label empty where there is none" if text in _WORDS_FOR_NOTHING else ""


def _names(value: Any, class_names: list[str]) -> str:
    names = names_in(value) if isinstance(value, str) else list(value) if _is_list(value) else None
    if names is None:
        raise LabelError(f"label {_shown(value)} is no list of names")
    called = [class_called(name, class_names) if isinstance(name, str) else None for name in names]
    unknown = [name for name, match in zip(names, called, strict=True) if match is None]
    if unknown:
        problem = f"label {_shown(unknown[0])} is not one of {_listed(class_names)}"
        raise LabelError(problem + _hint(unknown[0], class_names))
    return json.dumps([name for name in class_names if name in called])


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        text = value.strip() if isinstance(value, str) else ""
        hint = f"; write {text.replace(',', '.')}" if text.count(",") == 1 and _finite(text.replace(",", ".")) else ""
        raise LabelError(f"label {_shown(value)} is no finite number" + (hint or _hint(value, [])))
    return repr(number)


def _index(value: Any) -> int | None:
    """A whole number, however it is written: 1, 1.0, True, "1"."""
    number = _finite(value)
    return int(number) if number is not None and number.is_integer() else None


def _finite(value: Any) -> float | None:
    """A number, however it is written; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _listed(class_names: list[str]) -> str:
    """The names for a message; of many, the first."""
    more = f" … ({len(class_names)} in all)" if len(class_names) > _MOST_NAMED else ""
    return ", ".join(class_names[:_MOST_NAMED]) + more


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
