"""The recipe that a model repository was built from, kept in it: an edited recipe changes nothing until it is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.manifest import write_atomically
from recipes.schema import Recipe

_SECTIONS = ("encoder", "heads", "build", "serving")


class Difference(NamedTuple):
    """A value of the recipe that was another one when the repository was built."""

    key: str
    built: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} {json.dumps(self.built)}, now {json.dumps(self.now)}"


def write_record(repository: Path, recipe: Recipe) -> None:
    """Write what the recipe says, its defaults and the values of the command line included."""
    text = json.dumps(recipe.model_dump(mode="json", include=set(_SECTIONS)), indent=2)
    write_atomically(_path(repository), text.encode())


def differences(repository: Path, recipe: Recipe) -> list[Difference]:
    """What the recipe says otherwise now; nothing of a repository from before there were records."""
    try:
        built = json.loads(_path(repository).read_bytes())
    except FileNotFoundError:
        return []
    now = recipe.model_dump(mode="json", include=set(_SECTIONS))
    return list(_different(built, now, ""))


def _different(built: Any, now: Any, key: str) -> Iterator[Difference]:
    """Differences inside two values; a key that only one of them has is new or left out, and none."""
    if isinstance(built, dict) and isinstance(now, dict):
        for name in sorted(built.keys() & now.keys()):
            yield from _different(built[name], now[name], f"{key}.{name}".lstrip("."))
    elif isinstance(built, list) and isinstance(now, list) and len(built) == len(now):
        for index, pair in enumerate(zip(built, now, strict=True)):
            yield from _different(*pair, f"{key}.{index}")
    elif built != now:
        yield Difference(key, built, now)


def _path(repository: Path) -> Path:
    return repository / "proof" / "1" / "recipe.json"
