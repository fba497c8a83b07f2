"""One root of exceptions for the client."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

from clipsieve import exceptions
from common.paths import ROOT

CLIENT_EXCEPTIONS = ROOT / "clients" / "clipsieve" / "exceptions.py"
NOT_OF_THE_CLIENTS_TREE = {
    "ProofUnreadable": "its file is common/proof.py, byte for byte, which knows no client",
    "_Damage": "never leaves clipsieve/shards.py, which raises a ShardError instead",
    "_MoreAfterEnd": "a _Damage",
}


def classes_in(*folders: Path) -> Iterator[tuple[str, set[str], Path]]:
    """Name, names of the bases, and file of every class."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases}, path


def exceptions_in(*folders: Path) -> dict[str, Path]:
    """The exception classes that are defined there, by name."""
    classes = list(classes_in(*folders))
    names = {name for name, value in vars(builtins).items() if isinstance(value, type)}
    names = {name for name in names if issubclass(getattr(builtins, name), BaseException)}
    while more := {name for name, bases, _ in classes if bases & names} - names:
        names |= more
    return {name: path for name, _, path in classes if name in names}


def test_the_clients_exceptions_are_in_one_file_under_one_root():
    found = exceptions_in(ROOT / "clients")
    assert set(NOT_OF_THE_CLIENTS_TREE) < set(found)
    for name in found.keys() - NOT_OF_THE_CLIENTS_TREE:
        assert found[name] == CLIENT_EXCEPTIONS, f"{name} belongs into {CLIENT_EXCEPTIONS.name}"
        assert issubclass(getattr(exceptions, name), exceptions.ClipsieveError)


def test_the_tree_that_is_drawn_for_the_client_names_every_exception():
    drawn = (exceptions.__doc__ or "").split("\n\n")[1]
    names = {name for name, path in exceptions_in(ROOT / "clients").items() if path == CLIENT_EXCEPTIONS}
    assert {line.strip("│├└─ ").split()[0] for line in drawn.splitlines()} == names
