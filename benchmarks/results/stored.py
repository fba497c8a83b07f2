"""Results of the reference run as they are kept: the JSON line of each benchmark, in a file of its own."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.catalogue import find_benchmarks
from common.manifest import write_atomically
from common.paths import ROOT
from recipes.errors import ExpectedError

FOLDER = ROOT / "benchmarks" / "results"
FIRST = ("peers", "preprocessing", "growth", "tune")
"""Benchmarks that readers look for come first; the others follow alphabetically."""
BY_RECIPE = ("growth", "tune")
"""Benchmarks of which the result of each recipe is kept; of the others, the last result."""
REQUIRED = ("benchmark", "command", "date", "machine")
REQUIRED_OF_MACHINE = ("cpu", "cores", "memory_gib", "kernel", "load_before", "versions")
LARGEST_BYTES = 150_000
DIGITS = 8  # more would be noise, and larger files

_FOLDERS = "bin|data|etc|home|lib|media|mnt|opt|private|root|run|srv|tmp|usr|Users|var|work|workspace"
_ABSOLUTE_PATH = re.compile(rf"(?<![\w.:/$}}-])/(?:{_FOLDERS})/[^\s\"'\\]*")

Result = dict[str, Any]


class ResultError(ExpectedError):
    """The text is not the result of a benchmark; the message says what is wrong with it and what to do."""


def parse_output(output: str) -> Result:
    """The JSON line that ends a benchmark's output; paths inside this checkout become relative ones.

    Raises:
        ResultError: the last line is no result, or tells more of the machine than everybody should read.
    """
    lines = output.replace(f"{ROOT}/", "").rstrip().splitlines()
    result = _json_object(lines[-1] if lines else "")
    check(result)
    return _shortened(result)


def check(result: Result) -> None:
    """
    Raises:
        ResultError
    """
    missing = [key for key in REQUIRED if key not in result]
    machine = result.get("machine")
    if isinstance(machine, dict):
        missing += [f"machine.{key}" for key in REQUIRED_OF_MACHINE if key not in machine]
    if result.get("benchmark") in BY_RECIPE and "recipe" not in result:
        missing.append("recipe")
    if missing:
        raise ResultError(f"lacks {', '.join(missing)}; a benchmark ends with benchmarks.machine.print_result")
    names = list(find_benchmarks())
    if result["benchmark"] not in names:
        nearest = difflib.get_close_matches(str(result["benchmark"]), names, n=1, cutoff=0)
        raise ResultError(f"is of {result['benchmark']!r}, which is no benchmark; did you mean {nearest[0]}?")
    text = json.dumps(result, ensure_ascii=False)
    if match := _ABSOLUTE_PATH.search(text):
        raise ResultError(f"names the path {match[0]}, which others do not have; run it with relative paths")
    if len(text.encode()) > LARGEST_BYTES:
        raise ResultError(f"has {len(text.encode()):,} bytes, at most {LARGEST_BYTES:,} are kept; run it with less")


def stored_name(result: Result) -> str:
    """Name of the result's file, section and pictures: `peers`, `growth-demo`."""
    name = result["benchmark"]
    return f"{name}-{result['recipe']}" if name in BY_RECIPE else name


def store(results: Iterable[Result], folder: Path = FOLDER) -> list[Path]:
    """Write each in place of the last one of its name."""
    paths = []
    for result in results:
        paths.append(folder / f"{stored_name(result)}.json")
        write_atomically(paths[-1], (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return paths


def read_results(folder: Path = FOLDER) -> dict[str, Result]:
    """Stored results by name, in the order of the page.

    Raises:
        ResultError: naming the file.
    """
    return in_order({path.stem: _read(path) for path in folder.glob("*.json")})


def in_order(results: Mapping[str, Result]) -> dict[str, Result]:
    """Sort the results of FIRST's benchmarks before the others, which follow by name."""

    def place(name: str) -> tuple[int, str]:
        benchmark = results[name]["benchmark"]
        return FIRST.index(benchmark) if benchmark in FIRST else len(FIRST), name

    return {name: results[name] for name in sorted(results, key=place)}


def read_notes(folder: Path = FOLDER) -> dict[str, str]:
    """Notes that people wrote on a result's figures, by its name."""
    return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.md"))}


def _read(path: Path) -> Result:
    try:
        result = _json_object(path.read_text(encoding="utf-8"))
        check(result)
        if stored_name(result) != path.stem:
            raise ResultError(f"is of {stored_name(result)}, its file's name is not")
    except ResultError as error:
        raise ResultError(f"{path.name}: {error}") from error
    return result


def _json_object(text: str) -> Result:
    def refuse(name: str) -> None:
        raise ResultError(f"holds {name}, which is no JSON")

    try:
        result = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ResultError(f"is no JSON ({error}): {text[:80]!r}; keep a benchmark's output up to its end") from error
    if not isinstance(result, dict):
        raise ResultError(f"is {type(result).__name__}, not an object: {text[:80]!r}")
    return result


def _shortened(value: Any) -> Any:
    """Floating-point numbers with DIGITS significant digits, at any depth."""
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
