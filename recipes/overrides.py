"""Values of a recipe from the command line: `heads.nsfw.fit.max_epochs=3` takes the place of what its file says."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from recipes.errors import ExpectedError

Place = tuple[int | str, ...]
"""Keys and indices from the top of a recipe to one value."""


class OverrideError(ExpectedError):
    """An override is no `key=value`, or leads to no place of the recipe."""


@dataclass(frozen=True)
class Override:
    """One value from the command line, and its dotted key as it was typed."""

    key: str
    value: Any
    written: Any
    """The value with every number and word as text, as YAML's BaseLoader reads it."""


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add --set, whose texts become `overrides` of the arguments."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="another value of the recipe, such as serving.max_batch_size=8 or heads.nsfw.fit.seed=1; may be repeated",
    )


def parse_override(text: str) -> Override:
    """Read `key=value`, whose value is YAML; nothing behind the `=` is null.

    Raises:
        OverrideError: there is no key, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise OverrideError(f"--set {text}: write key=value, such as serving.max_batch_size=8")
    try:
        return Override(key, yaml.safe_load(value), yaml.load(value, yaml.BaseLoader))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise OverrideError(f"--set {text}: the value is not valid YAML: {reason}") from error


def overridden(data: Any, written: Any, overrides: Sequence[Override]) -> tuple[Any, Any]:
    """A recipe's data with the overrides in their order, and the same of its values as text; neither is changed.

    Raises:
        OverrideError: a key leads into a value that has no keys, or to an entry that a list does not have.
    """
    for override in overrides:
        place = place_of(override.key, data)
        data, written = replaced(data, place, override.value), replaced(written, place, override.written)
    return data, written


def place_of(key: str, data: Any) -> Place:
    """The place of a dotted key; an entry of a list is meant by its index, or by its `name`.

    Raises:
        OverrideError: there is no such place; keys of mappings are not looked at, the schema knows them.
    """
    place: list[int | str] = []
    for part in key.split("."):
        if isinstance(data, list):
            index = _index_in(data, part, f"--set {key}", ".".join(map(str, place)))
            data = data[index]
            place.append(index)
        elif data is None or isinstance(data, dict):
            data = (data or {}).get(part)
            place.append(part)
        else:
            above = ".".join(map(str, place))
            raise OverrideError(f"--set {key}: {above} is {data!r:.80}, which has no keys; set {above} itself")
    return tuple(place)


def _index_in(entries: list[Any], part: str, where: str, above: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    if part in names:
        return names.index(part)
    known = [str(index) if name is None else f"{name} ({index})" for index, name in enumerate(names)]
    nearest = difflib.get_close_matches(part, list(filter(None, names)), n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known) or 'no entries'}"
    raise OverrideError(f"{where}: {above} has no entry {part!r}; {hint}")


def replaced(data: Any, place: Place, value: Any) -> Any:
    """A copy of `data` with another value at a place, whose mappings are made where there are none.

    What YAML's anchors share is changed in this place alone. Data of another shape is left as it is.
    """
    if not place:
        return value
    key, rest = place[0], place[1:]
    if isinstance(key, str) and (data is None or isinstance(data, dict)):
        data = data or {}
        return {**data, key: replaced(data.get(key), rest, value)}
    if isinstance(key, int) and isinstance(data, list) and key < len(data):
        return [*data[:key], replaced(data[key], rest, value), *data[key + 1 :]]
    return data
