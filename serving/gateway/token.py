"""Makes a token for the gateway: printed once, and kept in the file as its SHA-256.

    python -m serving.gateway.token alice --file tokens.txt
    python -m serving.gateway --tokens tokens.txt

A running gateway sees the change. To shut somebody out, delete the line.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from recipes.errors import run_step
from serving.gateway.settings import GatewayError
from serving.gateway.tokens import new_token, read_tokens, token_line


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serving.gateway.token",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="who will hold it; appears in metrics")
    parser.add_argument("--file", type=Path, required=True, help="file of the tokens; is made if it is not there")
    arguments = parser.parse_args(argv)
    token = new_token()
    add_line(arguments.file, arguments.name, token_line(arguments.name, token))
    print(token)
    print(f"added to {arguments.file}; the token is shown this once", file=sys.stderr)


def add_line(file: Path, name: str, line: str) -> None:
    """Append a line to a file that only its owner may read.

    Raises:
        GatewayError: the name is taken, or the file is no file of tokens.
    """
    if file.exists() and file.stat().st_size and name in read_tokens(file).values():
        raise GatewayError(f"{file} has a token of {name!r} already: delete its line first, or choose another name")
    with open(file, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as text:
        text.write(line + "\n")


if __name__ == "__main__":
    sys.exit(run_step("serving.gateway.token", main))
