"""The benchmarks and trials there are, listed and run by name.

They are read from their sources: nothing is imported, because torch alone takes seconds.
"""

from __future__ import annotations

import ast
import difflib
import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.tables import duration
from common.paths import ROOT

MAKE_TARGETS = {"benchmarks": "bench", "trials": "trial"}
"""The target of the Makefile that runs a folder's commands."""
MEASURE_NOTHING = ("__main__", "instruction_sets", "onnx_runs", "results")
"""Commands that are no benchmarks; modules without a command are parts of one."""

_SENTENCE = re.compile(r".*?[.](?=\s|$)", re.DOTALL)
_DURATION = re.compile(r"\b(?:about|half)\b[\w ]*?\b(?:second|minute|hour)s?\b")


@dataclass(frozen=True)
class Command:
    """A benchmark or a trial, as its docstring describes it."""

    name: str
    sentence: str
    """The first one."""
    needs: list[str]
    """Steps to run before it, such as `make demo`."""
    duration: str
    """Such as `about 6 minutes`; empty when it says nothing."""


def main(package: str, arguments: list[str], took_s: Mapping[str, float] | None = None) -> int:
    """List the commands of a package, or run the one that the arguments name; returns the exit status.

    Args:
        took_s: seconds that commands took when they last ran, by name.
    """
    commands = find_commands(ROOT / package)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing(package, commands, took_s or {}))
        return 0
    name, *options = arguments
    if name in commands:
        run(f"{package}.{name}", options)
    print(unknown(package, name, list(commands)), file=sys.stderr)
    return 2


def listing(package: str, commands: Mapping[str, Command], took_s: Mapping[str, float]) -> str:
    """A line for each command with its first sentence, and one with what it needs and how long it takes."""
    lines = [f"python -m {package} NAME [options], or make {MAKE_TARGETS[package]} NAME=… OPTIONS='…'", ""]
    for name, command in commands.items():
        lines.append(f"  {name:17}{command.sentence}")
        takes = f"about {duration(took_s[name])}" if name in took_s else command.duration
        if notes := [*(f"first {need}" for need in command.needs), *([takes] if takes else [])]:
            lines.append(f"{'':19}({'; '.join(notes)})")
    return "\n".join(lines)


def unknown(package: str, name: str, names: list[str]) -> str:
    """The message for a name that no command has."""
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"{package}: there is no {name!r}; did you mean {nearest[0]}? `python -m {package}` lists all"


def run(module: str, options: list[str]) -> NoReturn:
    """Run a command in this process's place, so that signals and the exit status are its own."""
    os.execv(sys.executable, [sys.executable, "-m", module, *options])


def find_commands(folder: Path) -> dict[str, Command]:
    """The commands of a folder by name, in the order of the alphabet: `python -m <folder>.<name>` runs each."""
    sources = {path.stem: path for path in folder.glob("*.py")}
    sources |= {path.parent.name: path for path in folder.glob("*/__main__.py")}
    return {name: read_command(name, path) for name, path in sorted(sources.items()) if is_command(name, path)}


def find_benchmarks() -> dict[str, Command]:
    """The commands of benchmarks/, whose results are stored."""
    return find_commands(ROOT / "benchmarks")


def is_command(name: str, path: Path) -> bool:
    """True for a benchmark or a trial that is run by itself."""
    tests = [ast.unparse(node.test) for node in parse(path).body if isinstance(node, ast.If)]
    return name not in MEASURE_NOTHING and "__name__ == '__main__'" in tests


def read_command(name: str, path: Path) -> Command:
    """Reads a command from its module's docstring."""
    text = ast.get_docstring(parse(path), clean=False) or ""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    needs = [line.split("  #")[0].strip() for line in lines if line.startswith("make ")]
    match = _DURATION.search("\n".join(lines))
    return Command(name, first_sentence(text), needs, match[0] if match else "")


def first_sentence(text: str) -> str:
    """A docstring's first sentence, on one line."""
    paragraph = text.split("\n\n")[0]
    match = _SENTENCE.match(paragraph)
    return " ".join((match[0] if match else paragraph).split())


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
