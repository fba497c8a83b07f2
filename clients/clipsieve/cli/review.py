"""`clipsieve review`: a page on this machine to look at pictures, to answer about them and to train anew."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from clipsieve.blocking import Client
from clipsieve.cli.grouped import grouped, option
from clipsieve.cli.options import ServerOptions, exits
from clipsieve.exceptions import InputRefused
from clipsieve.progress import Reporter
from clipsieve.review.answers import Answers
from clipsieve.review.scoring import ServerScores
from clipsieve.review.server import serve
from clipsieve.review.session import Review, Setting
from clipsieve.review.start import answers_folder, is_store, pictures_of
from clipsieve.review.toolchain import Toolchain
from clipsieve.settings import Settings
from clipsieve.table_batches import SUFFIXES

_PAGE, _TRAINING, _RUN = "Page", "Training", "Run"


Reviewed = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER|TABLE]",
        envvar="CLIPSIEVE_REVIEW",
        help=f"A folder of pictures, searched recursively, or a table of scores: {', '.join(SUFFIXES)}. Without it, "
        "the pictures of the recipe's embedding store.",
        show_default=False,
    ),
]


def _names(value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not 2 <= len(names) <= 9 or not all(names) or len(set(names)) < len(names):
        raise typer.BadParameter(
            f"{value!r} is not two to nine different names with commas", param_hint="--class-names"
        )
    return names


@dataclass
class PageOptions:
    """The page, and where its answers go."""

    out: Annotated[
        Path | None,
        option(
            "--out/-o",
            "Where labels.csv, grades.csv and pairs.csv are written; by default the folder, or that of the table.",
            group=_PAGE,
            metavar="FOLDER",
        ),
    ] = None
    class_names: Annotated[
        str | None,
        option(
            "--class-names",
            "Labels to give, the negative class first; by default the recipe's or the table's, or keep,delete.",
            group=_PAGE,
            metavar="NAME,NAME",
        ),
    ] = None
    images: Annotated[
        Path,
        option(
            "--images", "Where a table's relative paths start from; by default here.", group=_PAGE, metavar="FOLDER"
        ),
    ] = Path()
    blur: Annotated[
        bool,
        option(
            "--blur",
            "Begin with blurred pictures, whatever the heads are called; by default where a name is about safety.",
            group=_PAGE,
        ),
    ] = False
    no_blur: Annotated[bool, option("--no-blur", "Show the pictures at once.", group=_PAGE)] = False
    port: Annotated[
        int, option("--port", "Port on 127.0.0.1; by default a free one.", group=_PAGE, min=0, max=65535)
    ] = 0
    no_browser: Annotated[bool, option("--no-browser", "Only print the address.", group=_PAGE)] = False


@dataclass
class TrainingOptions:
    """The recipe and the store that the page trains with."""

    recipe: Annotated[
        str | None,
        option(
            "--recipe",
            "Recipe of the head that the answers train, by the commands of clipsieve's toolchain.",
            group=_TRAINING,
            metavar="NAME",
        ),
    ] = None
    overrides: Annotated[
        list[str] | None,
        option(
            "--set",
            "A value in place of the recipe's, such as heads.nsfw.fit.seed=1; may be repeated.",
            group=_TRAINING,
            metavar="KEY=VALUE",
        ),
    ] = None
    head: Annotated[
        str | None,
        option("--head", "The recipe's head, needed if it has several; or those to ask the server for.",
               group=_TRAINING, metavar="NAME"),
    ] = None  # fmt: skip
    store: Annotated[
        Path | None,
        option(
            "--store", "Embedding store; by default that of the recipe's encoder.", group=_TRAINING, metavar="FOLDER"
        ),
    ] = None
    toolchain: Annotated[
        Path,
        option("--toolchain", "Folder of the toolchain; by default here.", group=_TRAINING, metavar="FOLDER"),
    ] = Path()


@dataclass
class RunOptions:
    """Options of printing."""

    quiet: Annotated[bool, option("--quiet/-q", "Print the address alone.", group=_RUN)] = False


@grouped
def review(
    page: PageOptions,
    training: TrainingOptions,
    server: ServerOptions,
    run: RunOptions,
    reviewed: Reviewed = None,
) -> None:
    """Open a page on this machine to look at pictures, label, grade and compare them, and train anew.

    Every answer is on the disk before the next picture shows. Nothing is moved or deleted, and no request leaves the
    machine, but to the server that --url names. Exit status: 0 the page was ended, 1 failure, 2 usage, 5 server
    unavailable.
    """
    class_names = _names(page.class_names)
    reporter = Reporter(run.quiet)
    with exits(reporter):
        folder = answers_folder(reviewed, page.out)
        answers = Answers(folder)
        toolchain = facts = None
        if training.recipe is not None:
            toolchain = _toolchain(training, reviewed)
            facts = toolchain.describe()
        elif training.overrides:
            raise InputRefused(f"--set {training.overrides[0]}: which recipe's? name it with --recipe")
        pictures, note = pictures_of(reviewed, page.images, folder, toolchain)
        scoring = None
        if server.url is not None:
            heads = [training.head] if training.head and not training.recipe else None
            scoring = ServerScores(_client(server), pictures, heads)
            scoring.start()
        title = (reviewed or folder).resolve().name
        setting = Setting(title, class_names, _blur(page), note)
        serve(Review(pictures, answers, setting, toolchain, facts, scoring), page.port, not page.no_browser, run.quiet)


def _blur(page: PageOptions) -> bool | None:
    if page.blur and page.no_blur:
        raise typer.BadParameter("--blur and --no-blur say the opposite; give one")
    return True if page.blur else False if page.no_blur else None


def _toolchain(training: TrainingOptions, reviewed: Path | None) -> Toolchain:
    assert training.recipe is not None
    store = training.store or (reviewed if reviewed is not None and is_store(reviewed) else None)
    recipe = training.recipe
    if recipe.endswith((".yaml", ".yml")):
        recipe = os.path.abspath(recipe)
    overrides = tuple(training.overrides or ())
    return Toolchain(training.toolchain.resolve(), recipe, training.head, store and store.resolve(), overrides)


def _client(server: ServerOptions) -> Client:
    settings = server.client(wait_s=5.0, priority="bulk")
    return Client(**{each.name: getattr(settings, each.name) for each in fields(Settings)})
