"""What can be measured, and the way to each benchmark.

    python -m benchmarks                          # or make bench: what there is
    python -m benchmarks peers --rounds 3         # or make bench NAME=peers OPTIONS='--rounds 3'

The same as `python -m benchmarks.peers --rounds 3`, whose exit status is kept. About how long a benchmark takes is
what its stored result took (`benchmarks.results`), or what its docstring says.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from benchmarks.catalogue import Benchmark, find_benchmarks
from benchmarks.results.markdown import duration
from benchmarks.results.stored import ResultError, read_results


def listing(benchmarks: Mapping[str, Benchmark], took_s: Mapping[str, float]) -> str:
    lines = ["python -m benchmarks NAME [options], or make bench NAME=… OPTIONS='…'", ""]
    for name, benchmark in benchmarks.items():
        lines.append(f"  {name:17}{benchmark.sentence}")
        takes = f"about {duration(took_s[name])}" if name in took_s else benchmark.duration
        if told := [*(f"first {need}" for need in benchmark.needs), *([takes] if takes else [])]:
            lines.append(f"{'':19}({'; '.join(told)})")
    return "\n".join(lines)


def unknown(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"benchmarks: there is no benchmark {name!r}; did you mean {nearest[0]}? `python -m benchmarks` lists all"


def stored_durations() -> dict[str, float]:
    """Seconds that the stored results took; none when they cannot be read, which is `benchmarks.results`' to tell."""
    try:
        return {name: result["took_s"] for name, result in read_results().items() if "took_s" in result}
    except ResultError:
        return {}


def run(name: str, options: list[str]) -> NoReturn:
    """In this process's place, so that signals and the exit status are the benchmark's."""
    os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.{name}", *options])


def main(arguments: list[str]) -> int:
    benchmarks = find_benchmarks()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing(benchmarks, stored_durations()))
        return 0
    name, *options = arguments
    if name not in benchmarks:
        print(unknown(name, list(benchmarks)), file=sys.stderr)
        return 2
    run(name, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
