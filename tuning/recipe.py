"""A copy of a recipe's text in which only keys of `serving` differ; its comments stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from recipes.overrides import overridden, parse_override
from recipes.schema import RECIPES, Recipe, RecipeError, parse_recipe
from tuning.candidates import Setting

MARK = "# tuned: "
"""Begins every line that tells of a sweep; those of an earlier one are replaced."""

Edit = tuple[int, int, str]
"""Characters from, to, and what takes their place."""


def recipe_file(recipe_reference: str) -> Path:
    """The file of a recipe that was loaded by this name or path."""
    path = Path(recipe_reference)
    return path if path.suffix in {".yaml", ".yml"} else RECIPES / f"{recipe_reference}.yaml"


def tuned_text(
    text: str, recipe: Recipe, setting: Setting, comments: Iterable[str], overrides: Sequence[str] = ()
) -> str:
    """The recipe's text with the setting, below lines that tell where it comes from.

    Where the keys cannot be changed in place (anchors, merged mappings), and where `overrides` gave the recipe other
    values than its text has, the text is written anew with them, without comments.
    """
    tuned = setting.applied_to(recipe)
    # What the goal would decide is written out as well: it follows from the numbers beside it, and from the machine.
    changes = {key: value for key, value in setting.model_dump().items() if value != getattr(recipe.serving, key)}
    lines = [f"{MARK}{line}\n" for line in comments]
    body = re.sub(rf"\A(?:{re.escape(MARK)}.*\n)+", "", text)
    edited = edited_text(body, changes)
    if _loads_as(edited, tuned):
        return "".join(lines) + edited
    data, _ = overridden(yaml.safe_load(body), None, [parse_override(override) for override in overrides])
    data["serving"] = dict(data.get("serving") or {}) | changes
    reason = "with the values of --set" if overrides else "because its keys could not be changed in place"
    lines.append(f"{MARK}the text was written anew, {reason}\n")
    return "".join(lines) + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def edited_text(text: str, changes: Mapping[str, int]) -> str:
    """The text with these keys of `serving` changed or added, and nothing else."""
    if not changes:
        return text
    serving = _values(yaml.compose(text, Loader=yaml.SafeLoader)).get("serving")
    if not isinstance(serving, yaml.MappingNode):
        block = "".join(f"  {key}: {value}\n" for key, value in changes.items())
        return f"{text.rstrip()}\n\nserving:\n{block}"
    present = _values(serving)
    edits: list[Edit] = [
        (present[key].start_mark.index, present[key].end_mark.index, str(value))
        for key, value in changes.items()
        if key in present
    ]
    if added := {key: value for key, value in changes.items() if key not in present}:
        edits.append(_insertion(text, serving, added))
    return _applied(text, edits)


def _values(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """The values of a mapping by their keys."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


def _insertion(text: str, mapping: yaml.MappingNode, added: Mapping[str, int]) -> Edit:
    """Keys behind the last one that ends on a line of its own; in `{…}` behind the last."""
    pairs = [f"{key}: {value}" for key, value in added.items()]
    if mapping.flow_style:
        at = mapping.value[-1][1].end_mark.index if mapping.value else mapping.start_mark.index + 1
        return at, at, (", " if mapping.value else "") + ", ".join(pairs)
    indent = " " * mapping.start_mark.column
    ends = [value.end_mark.index for _, value in mapping.value if _is_short(value)]
    if not ends:
        at = mapping.start_mark.index
        return at, at, "".join(f"{pair}\n{indent}" for pair in pairs)
    end_of_line = text.find("\n", ends[-1])
    at = len(text) if end_of_line == -1 else end_of_line
    return at, at, "".join(f"\n{indent}{pair}" for pair in pairs)


def _is_short(node: yaml.Node) -> bool:
    """A plain or quoted value, or one in brackets; its end mark is where it ends, not where the next key begins."""
    if isinstance(node, yaml.ScalarNode):
        return node.style not in ("|", ">")
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _applied(text: str, edits: Iterable[Edit]) -> str:
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _loads_as(text: str, recipe: Recipe) -> bool:
    try:
        return parse_recipe(yaml.safe_load(text)) == recipe
    except (yaml.YAMLError, RecipeError):
        return False
