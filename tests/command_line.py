"""The command `clipsieve`, run in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner, Result

from clipsieve.cli.main import app


def run_cli(*arguments: object, **options: Any) -> Result:
    """Run the command on a terminal so wide that no message is broken."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments], **options)
