"""The command line `clipsieve`: results on stdout or in a file, everything else on stderr.

Exit status: 0 everything was scored; 1 failure; 2 usage; 3 some images have no score; 5 server unavailable.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from clipsieve import cli_bench, cli_embed, cli_score, cli_server
from clipsieve.options import GroupedCommand

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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("clipsieve"))
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (cli_score.score, cli_embed.embed, cli_server.heads, cli_server.health, cli_bench.bench):
    app.command(cls=GroupedCommand)(_command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
