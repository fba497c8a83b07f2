"""The options --recipe and --set of every step, and the recipe that they mean.

`--set` is an option of its own in all steps, not a bare word, because texts, thresholds and heads are bare words of
some of them.
"""

from __future__ import annotations

import argparse

from recipes.overrides import OverrideError, add_set_option
from recipes.schema import Recipe, load_recipe

RECIPE_HELP = "a name in recipes/ or the path of a YAML file"


def add_recipe_options(
    parser: argparse.ArgumentParser,
    *,
    group: argparse._MutuallyExclusiveGroup | None = None,
    required: bool = True,
    default: str | None = None,
    help: str = RECIPE_HELP,
) -> None:
    """Add --recipe, to `group` where it is one of several things to name, and --set."""
    if group is not None:
        group.add_argument("--recipe", help=help)
    else:
        parser.add_argument("--recipe", required=required and default is None, default=default, help=help)
    add_set_option(parser)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that --recipe names, with the values of --set.

    Raises:
        RecipeError: it cannot be read, or does not fit the schema.
        OverrideError: a --set is no key=value, or leads nowhere.
    """
    return load_recipe(arguments.recipe, arguments.overrides)


def recipe_if_any(arguments: argparse.Namespace) -> Recipe | None:
    """The recipe, where --recipe may be left out; --set may then not be given.

    Raises:
        RecipeError, OverrideError: as of `recipe_of`, or there are values and no recipe.
    """
    if arguments.recipe is not None:
        return recipe_of(arguments)
    if arguments.overrides:
        raise OverrideError(f"--set {arguments.overrides[0]}: which recipe's? name it with --recipe")
    return None


def recipe_options(arguments: argparse.Namespace) -> list[str]:
    """The same options for another step's command line."""
    return ["--recipe", str(arguments.recipe), *(word for text in arguments.overrides for word in ("--set", text))]
