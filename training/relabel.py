"""Labels that a person gave → embedding store: corrections of known pictures, and new pictures with their labels.

    python -m training.relabel --recipe nsfw-vit-b-32 ~/Downloads/scores-nsfw-labels.csv    # a report's exported marks
    python -m training.relabel --recipe nsfw-vit-b-32 corrections.csv
    python -m training.relabel --store photos-store audit.csv      # of a store that knows one head

The table (CSV, JSON, JSON lines or Parquet) names pictures by `path`, `key` or `sha256` and gives their `label`;
empty ones are passed over. Of an audit's CSV, rows with an x under `accept` take their suggested_label. All
copies of a content change together, and a picture to which the data sets give several labels gets this one. Labels must
be the recipe's; without --recipe, ones that the store has.

A picture that the store does not know is embedded as training.embed does it, which needs --recipe. It stays with its
label in a data set of its own, `marks`, whatever becomes of the file. What cannot be embedded is listed in
<store>.errors.csv. A correction belongs to the head. All rows are applied or, with a message that lists what is wrong,
none. Prints how many pictures have another label than before, new ones among them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipsieve.paths import path_from_text, text_from_path
from common.manifest import sha256_of
from recipes.arguments import add_recipe_options, recipe_if_any
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import INTERRUPTED, StepError
from training.labels import LabelError, label_from
from training.new_pictures import add_pictures
from training.progress import say
from training.sample import Sample
from training.sources import HeadData, adopt_former_files, heads_in, mentions_table, read_sources
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


@dataclass(frozen=True)
class Requests:
    """The labels that a table asks for."""

    changes: list[Change]
    new: list[Sample]
    """Pictures that the store does not know."""


def requests_in(
    table: Table, stored: Stored, label_of: Callable[[Any], str | None], can_embed: bool = True
) -> Requests:
    """Read the labels that the table asks for, by content.

    Args:
        table: the corrections.
        stored: the head's pictures.
        label_of: a label as it is written → as the store keeps it; raises LabelError.
        can_embed: pictures may be new to the store.

    Raises:
        StepError: a column is missing; a row that is neither in the store nor a file, or stands for several contents; a
            label that cannot be; one content with two labels. Lists what was found and the rows.
    """
    _check_columns(table)
    wrong: list[str] = []
    requested: dict[str, tuple[str, str]] = {}
    new: dict[str, Sample] = {}
    for number, row in enumerate(table.rows):
        where = table.where(number)
        try:
            label = label_of(_requested(row))
            if label is None:
                continue
            content, file = stored.find(row, can_embed)
        except (LabelError, LookupError) as error:
            wrong.append(f"{where}: {error.args[0]}")
            continue
        before, other = requested.setdefault(content, (label, where))
        if before != label:
            wrong.append(f"{where}: {label}, but {other} says {before} of the same content")
        if file is not None:
            new[str(file)] = Sample(text_from_path(f"{file.parent.name}/{file.name}"), file, label, origin=where)
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise StepError(f"{table.file}: nothing was changed:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    changes = [stored.change(content, label) for content, (label, _) in requested.items() if stored.knows(content)]
    return Requests(changes, list(new.values()))


def apply_changes(data: HeadData, changes: list[Change]) -> int:
    """Add the corrections, in one file; returns how many pictures have another label now."""
    needed = [change for change in changes if not change.settled]
    if needed:
        sums, was, labels = zip(*((change.sha256, change.was, change.label) for change in needed), strict=True)
        append_corrections(data, list(sums), list(was), list(labels))
    return sum(change.changes for change in needed)


class Stored:
    """The pictures of a head, found by whatever names one of their files."""

    def __init__(self, pictures: Pictures | None, mentions: pa.Table) -> None:
        self.pictures = pictures
        self._row_of = {content: row for row, content in enumerate(pictures.sha256 if pictures else ())}
        paths, keys, sums = (mentions[name].to_pylist() for name in ("path", "key", "sha256"))
        self._by_path = dict(zip(paths, sums, strict=True))
        self._by_key: dict[str, set[str]] = {}
        for key, content in zip(keys, sums, strict=True):
            self._by_key.setdefault(key, set()).add(content)

    @classmethod
    def read(cls, data: HeadData, may_be_empty: bool = False) -> Stored:
        """
        Args:
            data: of the head.
            may_be_empty: no data set need have been read for it.

        Raises:
            StepError: no data set was read for the head, or a file is damaged.
        """
        if may_be_empty and not read_sources(data):
            return cls(None, mentions_table([]))
        return cls(read_pictures(data), read_mentions(data))

    def knows(self, content: str) -> bool:
        return content in self._row_of

    def find(self, row: dict[str, Any], can_embed: bool) -> tuple[str, Path | None]:
        """The sha256 that a row of the corrections stands for, and the file where the store does not know it.

        Raises:
            LookupError: there is none, or several; says which and what to do.
        """
        given = {name: str(row[name]) for name in _NAMES if row.get(name)}
        if not given:
            raise LookupError(f"no {', '.join(_NAMES)} given")
        content = self._known(given)
        if content is not None:
            return content, None
        name, value = next((name, value) for name, value in given.items() if name != "sha256" or len(given) == 1)
        file = Path(path_from_text(value)).absolute()
        if name != "path" or not file.is_file():
            no_file = ", and there is no such file" if name == "path" else ""
            raise LookupError(f"{name} {value!r} is not in the store{no_file}")
        content = sha256_of(file)
        if given.get("sha256", content) != content:
            raise LookupError(f"path {value!r} has another content than when it was marked; make the report again")
        if self.knows(content):
            return content, None
        if not can_embed:
            raise LookupError(
                f"path {value!r} is not in the store; name the --recipe, whose encoder embeds new pictures"
            )
        return content, file

    def change(self, content: str, label: str) -> Change:
        assert self.pictures is not None
        row = self._row_of[content]
        changes = self.pictures.label[row] != label
        settled = not changes and self.pictures.corrected[row]
        return Change(content, self.pictures.data_label[row], label, changes, settled)

    def _known(self, given: dict[str, str]) -> str | None:
        """The content in the store; by its sum alone where that is given, since the file may have changed."""
        if "sha256" in given:
            return given["sha256"] if self.knows(given["sha256"]) else None
        if "path" in given:
            value = given["path"]
            for path in (value, str(Path(value).absolute()), str(Path(value).resolve())):
                if path in self._by_path:
                    return self._by_path[path]
        name, value = next(iter(given.items()))
        contents = self._by_key.get(value, set())
        if len(contents) > 1:
            raise LookupError(f"{name} {value!r} is the key of {len(contents)} images; give its whole path or sha256")
        return next(iter(contents), None)


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


def _known_label(pictures: Pictures | None) -> Callable[[Any], str | None]:
    """Accept the labels that the store has."""
    assert pictures is not None
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
    add_recipe_options(parser, required=False, help="whose class_names the labels must be")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_if_any(arguments)
    data = _head_data(arguments.store, recipe, arguments.head)
    adopt_former_files(data)
    stored = Stored.read(data, may_be_empty=recipe is not None)
    label_of = _known_label(stored.pictures) if recipe is None else _head_label(recipe.head(arguments.head))
    requests = requests_in(read_table(arguments.corrections), stored, label_of, can_embed=recipe is not None)
    added = 0
    if requests.new and recipe is not None:
        added = add_pictures(requests.new, recipe, data)
        if not added and not requests.changes:
            raise StepError(f"{arguments.corrections}: none of its pictures can be embedded: nothing was changed")
    changed = apply_changes(data, requests.changes)
    say(f"{changed} of {len(requests.changes)} known pictures have another label now, in {data.store}")
    print(changed + added)


if __name__ == "__main__":
    sys.exit(run_step("training.relabel", main, INTERRUPTED))
