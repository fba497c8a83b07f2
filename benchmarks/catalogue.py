"""What benchmarks there are, read from their sources: nothing is imported, because torch alone takes seconds."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from common.paths import ROOT

FOLDER = ROOT / "benchmarks"
MEASURE_NOTHING = ("__main__", "instruction_sets", "onnx_runs", "results")
"""Commands of this folder that are no benchmarks; modules without a command are parts of one."""

_SENTENCE = re.compile(r".*?[.](?=\s|$)", re.DOTALL)
_DURATION = re.compile(r"\b(?:about|half)\b[\w ]*?\b(?:second|minute|hour)s?\b")


@dataclass(frozen=True)
class Benchmark:
    """What its docstring says."""

    name: str
    sentence: str
    """The first one."""
    needs: list[str]
    """What has to be made before, such as `make demo`."""
    duration: str
    """Such as `about 6 minutes`; empty when it says nothing."""


def find_benchmarks(folder: Path = FOLDER) -> dict[str, Benchmark]:
    """By name, in the order of the alphabet: `python -m benchmarks.<name>` runs each."""
    sources = {path.stem: path for path in folder.glob("*.py")}
    sources |= {path.parent.name: path for path in folder.glob("*/__main__.py")}
    return {name: read_benchmark(name, path) for name, path in sorted(sources.items()) if is_benchmark(name, path)}


def is_benchmark(name: str, path: Path) -> bool:
    """Whether the module has a command of its own, and measures something."""
    tests = [ast.unparse(node.test) for node in parse(path).body if isinstance(node, ast.If)]
    return name not in MEASURE_NOTHING and "__name__ == '__main__'" in tests


def read_benchmark(name: str, path: Path) -> Benchmark:
    text = ast.get_docstring(parse(path), clean=False) or ""
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    needs = [command.split("  #")[0].strip() for command in commands if command.startswith("make ")]
    found = _DURATION.search("\n".join(commands))
    return Benchmark(name, first_sentence(text), needs, found[0] if found else "")


def first_sentence(text: str) -> str:
    """Of a docstring, on one line."""
    paragraph = text.split("\n\n")[0]
    found = _SENTENCE.match(paragraph)
    return " ".join((found[0] if found else paragraph).split())


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
