"""Writes recipes/README.md: every key of a recipe, its type, default and meaning, from the schema itself.

python -m recipes.reference           # write it
python -m recipes.reference --check   # exit 1 when it is not what the schema says
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.errors import run_step
from recipes.schema import RECIPES, Recipe, load_recipe, recipe_names, section_in

PAGE = RECIPES / "README.md"
_NAMES = {
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "Path": "path",
    "Any": "anything",
}


def page() -> str:
    """The page in Markdown."""
    parts = [
        "# Recipes",
        "A recipe describes one deployment. `python -m recipes.schema NAME` prints one with all its defaults; an "
        "unknown key is refused, with the nearest that exists. Every step takes other values for a run, `--set "
        "serving.max_batch_size=8 --set heads.nsfw.fit.seed=1` (a head by its name or its number; the value is YAML; "
        'of one key the last counts), and every make target `SET="serving.max_batch_size=8 heads.nsfw.fit.seed=1"`. '
        "This page is written by `python -m recipes.reference`.",
        "\n".join(
            [
                "| recipe | |",
                "|---|---|",
                *(f"| `{name}` | {load_recipe(name).description} |" for name in recipe_names()),
            ]
        ),
    ]
    described = dict.fromkeys(section for _, section in sections(Recipe, ""))
    paths = {section: path for path, section in reversed([*sections(Recipe, "")])}
    for section in described:
        path = paths[section]
        parts.append(f"## `{path}`" if path else "## A recipe")
        parts.append(" ".join((section.__doc__ or "").split()))
        parts.append("\n".join(["| key | type | default | |", "|---|---|---|---|", *rows(section)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, each once, with where it stands: `heads[].fit`."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None and inner is not section:
            dots = "[]" if typing.get_origin(field.annotation) is list else ""
            yield from sections(inner, f"{path}.{name}{dots}".lstrip("."))


def rows(section: type[BaseModel]) -> list[str]:
    """A line of the table for each key."""
    lines = []
    for name, field in section.model_fields.items():
        cells = (f"`{name}`", type_of(field.annotation), default_of(field), field.description or "")
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def type_of(annotation: Any) -> str:
    """An annotation for people: `text`, `list of integer`, `exact or scaled`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_of(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return _NAMES.get(getattr(annotation, "__name__", ""), str(annotation))


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel) or default is None or default in ([], ""):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(argv: list[str], path: Path = PAGE) -> int:
    text = page()
    if argv != ["--check"]:
        path.write_text(text, encoding="utf-8")
        return 0
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        print(f"{path}: not what the schema says; write it again with: python -m recipes.reference", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_step("recipes.reference", lambda: main(sys.argv[1:])))
