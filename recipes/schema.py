"""The recipe: one YAML file that describes a deployment. Every other setting follows from it.

python -m recipes.schema demo                                   # validate a recipe and print it with its defaults
python -m recipes.schema demo --set serving.max_batch_size=8    # with another value
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from recipes.build_section import Build
from recipes.classifiers import why_no_classifier
from recipes.encoder_section import Encoder
from recipes.errors import ExpectedError, run_step
from recipes.head_section import Head
from recipes.overrides import add_set_option, overridden, parse_override
from recipes.prompts import why_no_texts
from recipes.section import Section
from recipes.serving_section import Serving

RECIPES = Path(__file__).resolve().parent


class RecipeError(ExpectedError):
    """The recipe cannot be used; the message names the key, its value and what to do."""


class Recipe(Section):
    """A deployment: one encoder, its heads, and how they are built and served."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """The recipe's name, which is its folder under artifacts/."""
    description: str
    """One sentence for people."""
    notice: str | None = None
    """Printed wherever scores of this recipe are shown, e.g. that it is a demonstration."""
    encoder: Encoder
    """The image encoder, or several side by side."""
    heads: list[Head] = Field(min_length=1)
    """The classifiers on its embedding."""
    build: Build = Build()
    """Building of ONNX files and plans."""
    serving: Serving = Serving()
    """Inputs that the server accepts, and its use of the machine."""

    @model_validator(mode="before")
    @classmethod
    def _folder_of_finetune(cls, data: Any) -> Any:
        """Fill in what follows from `encoder.finetune`: its folder, and what its heads hold out."""
        encoder = data.get("encoder") if isinstance(data, dict) else None
        if not isinstance(encoder, dict) or not encoder.get("finetune"):
            return data
        heads = data.get("heads")
        if isinstance(heads, list):
            heads = [_on_finetuned(head) for head in heads]
        folder = f"artifacts/classifiers/{data.get('name')}"
        return {**data, "encoder": {"weights": folder, **encoder}, "heads": heads}

    @model_validator(mode="after")
    def _engine_profile(self) -> Recipe:
        opt, largest = self.build.engine.opt_batch_size, self.serving.max_batch_size
        if opt is not None and opt > largest:
            raise ValueError(f"build.engine.opt_batch_size {opt} is over serving.max_batch_size {largest}")
        return self

    @model_validator(mode="after")
    def _dali_decodes_jpegs_exactly(self) -> Recipe:
        decode, formats = self.encoder.towers[0].decode, self.serving.formats
        if self.serving.preprocess == "dali" and (decode != "exact" or "JPEG" not in formats):
            raise ValueError(
                f"serving.preprocess: dali is for JPEGs with decode: exact, found decode: {decode}, formats: {formats}"
            )
        return self

    @model_validator(mode="after")
    def _unique_heads(self) -> Recipe:
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise ValueError(f"head names must be unique, found {names}")
        reserved = [name for name in names if re.search(r"_(decision|deviation|revision|head)$", name)]
        if reserved:
            raise ValueError(f"head names may not end in _decision, _deviation, _revision or _head, found {reserved}")
        return self

    @model_validator(mode="after")
    def _texts_have_a_tower(self) -> Recipe:
        reason = why_no_texts(self.encoder)
        for head in self.heads:
            if head.prompts and reason is not None:
                raise ValueError(f"head {head.name} has prompts: {reason}")
        return self

    @model_validator(mode="after")
    def _classifiers_have_a_model(self) -> Recipe:
        reason = why_no_classifier(self.encoder)
        for head in self.heads:
            if head.classifier is not None and reason is not None:
                raise ValueError(f"head {head.name} has classifier: {reason}")
        return self

    @model_validator(mode="after")
    def _shadows(self) -> Recipe:
        heads = {head.name: head for head in self.heads}
        for head in self.heads:
            if head.shadow is None:
                continue
            shadow = heads.get(head.shadow)
            if shadow is None or shadow is head or shadow.shadow is not None:
                others = [other.name for other in self.heads if other is not head and other.shadow is None]
                raise ValueError(f"shadow of head {head.name} must be another head, {others}; found {head.shadow!r}")
            if (shadow.task, shadow.class_names) != (head.task, head.class_names):
                raise ValueError(f"head {head.name} and its shadow {shadow.name} must have one task and class_names")
            if not self.serving.watch:
                raise ValueError(f"head {head.name} has a shadow, which is compared only with serving: {{watch: true}}")
        return self

    @property
    def shadows(self) -> set[str]:
        """Names of the heads that run beside another and are no outputs of `image_score`."""
        return {head.shadow for head in self.heads if head.shadow is not None}

    def head(self, name: str | None) -> Head:
        """The head called `name`, or the only one when `name` is None."""
        names = [head.name for head in self.heads]
        if name is None and len(names) == 1:
            return self.heads[0]
        if name not in names:
            raise RecipeError(f"recipe {self.name}: head {name!r} is not one of {names}; name one with --head")
        return self.heads[names.index(name)]


def _on_finetuned(head: Any) -> Any:
    """A head with the split of its encoder's fine-tuning: nothing is held out but what that held out."""
    if not isinstance(head, dict) or not isinstance(head.get("fit", {}), dict):
        return head
    return {**head, "fit": {"folds": 0, "near_duplicate_cosine": None, **head.get("fit", {})}}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        name_or_path: `demo` for recipes/demo.yaml, or the path of a YAML file.
        overrides: `key=value` each, whose value takes the place of the file's; of one key the last counts.

    Raises:
        RecipeError: the file is missing, is not YAML, or does not fit the schema.
        OverrideError: an override is no key=value, or leads to no place of the recipe.
    """
    path = _recipe_path(name_or_path)
    changes = [parse_override(text) for text in overrides]
    try:
        text = path.read_text(encoding="utf-8")
        data, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)  # every value as text
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    where = " ".join([str(path), *(f"--set {text}" for text in overrides)])
    if changes and isinstance(data, dict):
        data, written = overridden(data, written, changes)
    return parse_recipe(data, where, written)


def parse_recipe(data: object, where: str = "recipe", written: Any = None) -> Recipe:
    """Validate a recipe that is already a dict.

    Args:
        data: what the YAML says.
        where: starts each line of the error.
        written: the same with every value as text, as it was written; for the error of a value that YAML does not read
            as text.
    """
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys, found {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(issue, written) for issue in error.errors()))
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipe_path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        return path
    known = recipe_names()
    if str(name_or_path) not in known:
        nearest = difflib.get_close_matches(str(name_or_path), known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise RecipeError(
            f"unknown recipe {str(name_or_path)!r}; {hint}known: {', '.join(known)}, or give a .yaml path"
        )
    return RECIPES / f"{name_or_path}.yaml"


def _explain(issue: Any, written: Any = None) -> str:
    """One line for one pydantic error: the place, the value and what to do."""
    key = ".".join(str(part) for part in issue["loc"]) or "recipe"
    if issue["type"] == "extra_forbidden":
        valid = list(_section_at(issue["loc"][:-1]).model_fields)
        nearest = difflib.get_close_matches(str(issue["loc"][-1]), valid, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if issue["type"] == "missing":
        return f"{key}: required, but missing"
    if issue["type"] == "string_type" and isinstance(issue["input"], (bool, int, float, datetime.date, type(None))):
        return _quoting(issue["loc"], issue["input"], written)
    return f"{key}: {issue['msg'].removeprefix('Value error, ')} (found {issue['input']!r:.80})"


def _quoting(loc: tuple[int | str, ...], value: object, written: Any) -> str:
    """How to write a text that YAML takes for something else, such as the class `no`: the line with its quotes."""
    place, name = loc, str(loc[-1])
    if isinstance(loc[-1], int):  # one of a list, of which the whole line is shown
        place, name = loc[:-1], str(loc[-2])
    text = _at(place, written)
    if written is None and place is not loc:
        line = f"- {json.dumps(str(value), ensure_ascii=False)}"
    elif isinstance(text, list) and all(isinstance(part, str) for part in text):
        line = f"{name}: [{', '.join(json.dumps(part, ensure_ascii=False) for part in text)}]"
    else:
        line = f"{name}: {json.dumps(text if isinstance(text, str) else str(value), ensure_ascii=False)}"
    key = ".".join(map(str, place))
    return f"{key}: YAML reads no, yes, on, off, null and numbers as no text; quote them: {line}"


def _at(loc: tuple[int | str, ...], data: Any) -> Any:
    """The value at a place; None where there is none."""
    for part in loc:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that owns the key at `loc`, e.g. ("heads", 0) → Head."""
    section: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, str):
            section = section_in(section.model_fields[part].annotation) or section
    return section


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The recipe section inside an annotation such as `list[Head]` or `Fit | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(section_in, typing.get_args(annotation))), None)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.schema", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe_names())}, or a YAML file")
    add_set_option(parser)
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")


if __name__ == "__main__":
    sys.exit(run_step("recipes.schema", main))
