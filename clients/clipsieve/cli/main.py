"""The command line `clipsieve`: results on stdout or in a file, everything else on stderr.

Exit status: 0 everything was scored; 1 failure; 2 usage; 3 some images have no score; 5 server unavailable.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from clipsieve.cli import arrange, bench, decide, embed, filter, report, review, score, score_embeddings, server, video
from clipsieve.cli.grouped import GroupedCommand
from clipsieve.cli.streams import run_command

app = typer.Typer(
    name="clipsieve",
    rich_markup_mode=None,  # plain text: boxes break long messages in logs
    help="Score images with a clipsieve server.",
    epilog="Exit status: 0 all scored, 1 failure, 2 usage, 3 some images have no score, 5 server unavailable. "
    "Every option has a variable in the environment: --url is CLIPSIEVE_URL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(version("clipsieve"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_COMMANDS = (
    ("score", score.score, "Score images: a row for each."),
    ("video", video.video, "Score videos by their frames: a row for each."),
    ("embed", embed.embed, "Compute the images' embeddings."),
    ("score-embeddings", score_embeddings.score_embeddings, "Score stored embeddings: a row for each."),
    ("report", report.report, "Make an HTML page of a table of scores, to look at and to correct."),
    ("review", review.review, "Look at pictures, label, grade and compare them, and train anew."),
    ("filter", filter.filter_command, "Keep samples by their scores: a list of names, or new shards."),
    ("decide", decide.decide_command, "Decide anew over a table of scores, by other thresholds."),
    ("arrange", arrange.arrange, "Order scored files by their times, or link them into folders."),
    ("heads", server.heads, "List the classifiers the server offers."),
    ("health", server.health, "Check that the server can score an image."),
    ("bench", bench.bench, "Measure images per second and latency at several concurrencies."),
)
for _name, _command, _line in _COMMANDS:  # in the order of the help
    app.command(_name, cls=GroupedCommand, short_help=_line)(_command)


def main() -> None:
    run_command("clipsieve", app)


if __name__ == "__main__":
    main()
