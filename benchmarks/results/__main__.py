"""The page of results, benchmarks/RESULTS.md, and its pictures: drawn from the stored results and from nothing else.

    python -m benchmarks.peers --rounds 5 | tee peers.log
    python -m benchmarks.results --store peers.log     # takes its last line into benchmarks/results/, draws the page
    python -m benchmarks.results                       # draws the page again, after a note was written
    python -m benchmarks.results --check               # says whether the page is what the stored results give

A result has one JSON file, benchmarks/results/<benchmark>.json; notes of people, such as where the time of a missed
target goes and what was tried, are benchmarks/results/<benchmark>.md and stand in the page as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results.page import PAGE, Stored, page_text, read_stored
from benchmarks.results.pictures import captions, svgs
from benchmarks.results.stored import FOLDER, Result, ResultError, parse_output, store
from common.manifest import write_atomically
from recipes.errors import run_step


def draw(outputs: list[Path], folder: Path, page: Path) -> None:
    """Store the results that these outputs end with, then write the page and its pictures: all of it or nothing.

    Pictures of results that are gone are removed.

    Raises:
        ResultError
    """
    fresh = [parsed(path) for path in outputs]
    text, pictures = drawn(read_stored(folder).with_results(fresh))
    store(fresh, folder)
    for name, svg in pictures.items():
        write_atomically(folder / name, svg)
    for path in folder.glob("*.svg"):
        if path.name not in pictures:
            path.unlink()
    write_atomically(page, text.encode())


def parsed(path: Path) -> Result:
    """
    Raises:
        ResultError: naming the file.
    """
    try:
        return parse_output(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}; keep the output there with tee") from error
    except (ResultError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: the last line {error}") from error


def drawn(stored: Stored) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by file name."""
    try:
        pictures = [svgs(result) for result in stored.results.values()]
        return page_text(stored), {name: svg for each in pictures for name, svg in each.items()}
    except KeyError as error:
        raise ResultError(f"a result lacks {error}, which the page shows; run that benchmark again") from error


def problems(folder: Path, page: Path) -> list[str]:
    """Differences between the page and the stored results. Pictures are only checked to be there: how a line is
    written in an SVG file depends on matplotlib's version."""
    stored = read_stored(folder)
    captioned = {name for result in stored.results.values() for name in captions(result)}
    there = {path.name for path in folder.glob("*.svg")}
    lines = [f"{name}: the picture is not there" for name in sorted(captioned - there)]
    lines += [f"{name}: no stored result has this picture" for name in sorted(there - captioned)]
    if not page.is_file() or page.read_text(encoding="utf-8") != page_text(stored):
        lines.append(f"{page.name}: is not what the stored results give")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--store", nargs="+", type=Path, metavar="FILE", default=[], help="outputs of benchmarks")
    action.add_argument("--check", action="store_true", help="write nothing; status 1 when the page is another one")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        draw(arguments.store, FOLDER, PAGE)
        return 0
    lines = problems(FOLDER, PAGE)
    for line in lines:
        print(f"results: {line}; draw it again: python -m benchmarks.results", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.results", main))
