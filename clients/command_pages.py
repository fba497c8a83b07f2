"""Writes the pages in commands/: what `clipsieve --help` and each command's `--help` say, by typer's own tool.

python clients/command_pages.py
"""

from __future__ import annotations

from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from clipsieve.cli import bulk, main

FOLDER = Path(__file__).parent / "commands"
APPS = {"clipsieve": main.app, "clipsieve-bulk": bulk.app}


def pages() -> dict[Path, str]:
    """Text of each page, by the file it belongs into."""
    return {FOLDER / f"{name}.md": page(app, name) for name, app in APPS.items()}


def page(app: typer.Typer, name: str) -> str:
    """Markdown of a command, its arguments and options, and of those below it."""
    command = get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name=name).strip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
