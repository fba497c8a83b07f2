"""Corrected labels → embedding store. Images are not touched and nothing is embedded again.

    python -m training.relabel --recipe nsfw-vit-b-32 corrections.csv
    python -m training.relabel --store photos-store audit.csv      # of a store that knows one head

The table (CSV, JSON, JSON lines or Parquet) names rows by `path`, `key` or `sha256` and gives their `label`;
empty ones are passed over. Of an audit's CSV, rows with an x under `accept` take their suggested_label. All
copies of a content change together, and a picture to which the data sets give several labels gets this one. Labels must
be the recipe's; without --recipe, ones that the store has.
A correction belongs to the head. All are applied or, with a message that lists what is wrong, none. Prints how many
pictures changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recipes.errors import run_step
from recipes.schema import Head, Recipe, load_recipe
from training.errors import INTERRUPTED, StepError
from training.labels import LabelError, label_from
from training.progress import say
from training.sources import HeadData, adopt_former_files, heads_in
from training.store import store_folder
from training.store_view import Pictures, append_corrections, read_mentions, read_pictures
from training.tables import Table, read_table

_NAMES = ("sha256", "path", "key")
_YES = {"x", "y", "yes", "1", "true"}
_SHOWN = 10


@dataclass(frozen=True)
class Change:
    """One content and its label."""

    sha256: str
    was: str | None
    """In the parts, without earlier corrections."""
    label: str
    changes: bool
    """Whether the picture has another label than this one now."""
    settled: bool
    """Whether an earlier correction says the same."""


def changes_in(table: Table, stored: Stored, label_of: Callable[[Any], str | None]) -> list[Change]:
    """Read the changes that the table asks for, by content.

    Args:
        table: the corrections.
        stored: the head's pictures.
        label_of: a label as it is written → as the store keeps it; raises LabelError.

    Raises:
        StepError: a column is missing; a row that is not in the store, or stands for several contents; a label that
            cannot be; one content with two labels. Lists what was found and the rows.
    """
    _check_columns(table)
    wrong: list[str] = []
    requested: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(table.rows):
        try:
            label = label_of(_requested(row))
            if label is None:
                continue
            content = stored.content_of(row)
        except (LabelError, LookupError) as error:
            wrong.append(f"{table.where(number)}: {error.args[0]}")
            continue
        before, where = requested.setdefault(content, (label, table.where(number)))
        if before != label:
            wrong.append(f"{table.where(number)}: {label}, but {where} says {before} of the same content")
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise StepError(f"{table.file}: nothing was changed:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    return [stored.change(content, label) for content, (label, _) in requested.items()]


def apply_changes(data: HeadData, changes: list[Change]) -> int:
    """Add the corrections, in one file; returns how many pictures have another label now."""
    needed = [change for change in changes if not change.settled]
    if needed:
        sums, was, labels = zip(*((change.sha256, change.was, change.label) for change in needed), strict=True)
        append_corrections(data, list(sums), list(was), list(labels))
    return sum(change.changes for change in needed)


class Stored:
    """The pictures of a head, found by whatever names one of their files."""

    def __init__(self, pictures: Pictures, mentions: pa.Table) -> None:
        self.pictures = pictures
        self._row_of = {content: row for row, content in enumerate(pictures.sha256)}
        paths, keys, sums = (mentions[name].to_pylist() for name in ("path", "key", "sha256"))
        self._by_path = dict(zip(paths, sums, strict=True))
        self._by_key: dict[str, set[str]] = {}
        for key, content in zip(keys, sums, strict=True):
            self._by_key.setdefault(key, set()).add(content)

    @classmethod
    def read(cls, data: HeadData) -> Stored:
        """
        Raises:
            StepError: no data set was read for the head, or a file is damaged.
        """
        return cls(read_pictures(data), read_mentions(data))

    def content_of(self, row: dict[str, Any]) -> str:
        """The sha256 that a row of the corrections stands for; LookupError says why there is none."""
        for name in _NAMES:
            value = row.get(name)
            if value:
                return self._found(name, str(value))
        raise LookupError(f"no {', '.join(_NAMES)} given")

    def change(self, content: str, label: str) -> Change:
        row = self._row_of[content]
        changes = self.pictures.label[row] != label
        settled = not changes and self.pictures.corrected[row]
        return Change(content, self.pictures.data_label[row], label, changes, settled)

    def _found(self, name: str, value: str) -> str:
        if name == "sha256" and value in self._row_of:
            return value
        if name == "path":
            for path in (value, str(Path(value).absolute()), str(Path(value).resolve())):
                if path in self._by_path:
                    return self._by_path[path]
        contents = self._by_key.get(value, set()) if name != "sha256" else set()
        if len(contents) > 1:
            raise LookupError(f"{name} {value!r} is the key of {len(contents)} images; give its whole path or sha256")
        if not contents:
            raise LookupError(f"{name} {value!r} is not in the store")
        return next(iter(contents))


def _requested(row: dict[str, Any]) -> Any:
    """The label a row asks for, None when it asks for nothing."""
    label = row.get("label")
    if label not in (None, ""):
        return label
    accepted = str(row.get("accept") or "").strip().lower()
    if accepted in ("", "0", "no", "n", "false"):
        return None
    if accepted not in _YES:
        raise LabelError(f"accept is {row['accept']!r}; put an x there, or the right class under label")
    if row.get("suggested_label") in (None, ""):
        raise LabelError("accepted, but there is no suggested_label; put the right class under label")
    return row["suggested_label"]


def _check_columns(table: Table) -> None:
    if not any(name in table.names for name in _NAMES):
        table.require(["path"], "Name the rows by path, key or sha256.")
    if "accept" not in table.names:
        table.require(["label"], "Give the right class under label.")


def _known_label(pictures: Pictures) -> Callable[[Any], str | None]:
    """Accept the labels that the store has."""
    disputed = {label for files in pictures.disputed.values() for _, label in files}
    known = sorted({label for label in (*pictures.label, *pictures.data_label) if label is not None} | disputed)

    def label_of(value: Any) -> str | None:
        if value is not None and str(value) not in known:
            raise LabelError(f"label {str(value)!r} is none that the store has ({', '.join(known)}); name the --recipe")
        return None if value is None else str(value)

    return label_of


def _head_label(head: Head) -> Callable[[Any], str | None]:
    return lambda value: label_from(value, head)


def _head_data(store: Path | None, recipe: Recipe | None, head: str | None) -> HeadData:
    """The head that the command line names; without a recipe the only one that the store knows."""
    if recipe is not None:
        return HeadData(store or store_folder(recipe), recipe.name, recipe.head(head).name)
    if store is None:
        raise StepError("which store? give --store, or --recipe for its default one")
    heads = heads_in(store)
    if len(heads) != 1:
        known = "; ".join(map(str, heads)) or "none: make it with python -m training.embed"
        raise StepError(f"{store}: whose labels? name the --recipe (and --head) of one of the heads it knows ({known})")
    return heads[0]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.relabel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corrections", type=Path, help="table of path, key or sha256, and label")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--recipe", help="whose class_names the labels must be")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    data = _head_data(arguments.store, recipe, arguments.head)
    adopt_former_files(data)
    stored = Stored.read(data)
    label_of = _known_label(stored.pictures) if recipe is None else _head_label(recipe.head(arguments.head))
    changes = changes_in(read_table(arguments.corrections), stored, label_of)
    changed = apply_changes(data, changes)
    say(f"{changed} of {len(changes)} pictures have another label now, in {data.store}")
    print(changed)


if __name__ == "__main__":
    sys.exit(run_step("training.relabel", main, INTERRUPTED))
