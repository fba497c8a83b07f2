"""How long the first commands of a newcomer take: `make demo`, with and without trained weights, and `make test`.

    python -m benchmarks.house                    # about 15 minutes on two cores
    python -m benchmarks.house --only demo

Everything that has to be installed is installed before, untimed. The demos write into an empty folder, as in a new
clone. Prints for each the seconds, the processor time of all of its processes and the line that says how it went, and
as its last line JSON. What fails ends the benchmark.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import rounded
from benchmarks.machine import machine, print_result
from benchmarks.results.views import terminal_text
from common.paths import ROOT
from recipes.errors import ExpectedError, run_step

INSTALLED = (
    *("venv", "triton", "heic", "transformers", "lightning"),
    *(".perf/.installed", ".trained/.installed", ".trained/.lite0", ".solar/.installed", ".dvcenv/.installed"),
)
"""What the targets need, and `make` installs by itself when it is not there."""


class TargetFailed(ExpectedError):
    """A target of the Makefile failed; the message ends with its last lines."""


@dataclass(frozen=True)
class Target:
    """A command and the line of its output that says how it went."""

    command: tuple[str, ...]
    line: str  # a regular expression


TARGETS = {
    "demo": Target(("make", "demo"), r"^AUROC .*"),
    "trained": Target(("make", "demo", "TRAINED=1"), r"^AUROC .*"),
    "test": Target(("make", "test"), r"\d+ passed.*?(?= in [\d.]+s|$)"),
}


def timed(target: Target) -> dict[str, Any]:
    """Run it with artefacts of its own.

    Raises:
        TargetFailed
    """
    with tempfile.TemporaryDirectory(prefix="clipsieve-house-") as folder:
        before, began = _processor_s(), time.perf_counter()
        output = make(target.command, {"CLIPSIEVE_ARTIFACTS": folder})
        seconds, processor = time.perf_counter() - began, _processor_s() - before
    return {
        "command": " ".join(target.command),
        "seconds": round(seconds, 1),
        "processor_s": round(processor, 1),
        "result": last_match(target.line, output),
    }


def make(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """What it printed.

    Raises:
        TargetFailed
    """
    # Run by make itself, its MAKEFLAGS would give every make below, those in tests too, NAME and OPTIONS of this one.
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    finished = subprocess.run(command, cwd=ROOT, env=ours | environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = (finished.stdout + finished.stderr).splitlines()[-20:]
        raise TargetFailed("\n".join([f"{' '.join(command)} ended with status {finished.returncode}:", *lines]))
    return finished.stdout


def last_match(line: str, output: str) -> str:
    """The last part of the output that matches; empty where none does."""
    matches = re.findall(line, output, re.MULTILINE)
    return matches[-1].strip(" =") if matches else ""


def _processor_s() -> float:
    """Processor time of all processes that were started from here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.house", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all, in this order")
    arguments, hardware = parser.parse_args(argv), machine()
    make(("make", *INSTALLED), {})
    result = {"targets": rounded([timed(TARGETS[name]) for name in arguments.only])}
    print(terminal_text({"benchmark": "house"} | result))
    print_result("benchmarks.house", hardware, **result)


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.house", main))
