"""Lists the benchmarks, with what each measures and its command.

    python -m benchmarks                          # or make bench: what there is
    python -m benchmarks peers --rounds 3         # or make bench NAME=peers OPTIONS='--rounds 3'

The same as `python -m benchmarks.peers --rounds 3`, whose exit status is kept. About how long a benchmark takes is
what its stored result took (`benchmarks.results`), or what its docstring says.
"""

from __future__ import annotations

import sys

from benchmarks import catalogue
from benchmarks.results.stored import ResultError, read_results


def stored_durations() -> dict[str, float]:
    """Seconds that the stored results took; none when they cannot be read, which `benchmarks.results` reports."""
    try:
        return {each["benchmark"]: each["took_s"] for each in read_results().values() if "took_s" in each}
    except ResultError:
        return {}


if __name__ == "__main__":
    sys.exit(catalogue.main("benchmarks", sys.argv[1:], stored_durations()))
