"""What growth costs: more heads, larger pictures, more requests a second, more images a request; as curves.

    make train RECIPE=benchmarks/peers/vit-b-32.yaml DATA=PHOTOS    # any two labelled folders: angular/ and round/
    python -m benchmarks.growth                                       # about 11 minutes on two cores
    python -m benchmarks.growth --recipe demo --rounds 2 --seconds 1 --only heads rates

A real embedded server scores real photographs, asked over gRPC from this process; what it spends is its own processes'
time. Heads are copies of the recipe's first. Cases take turns, round after round, and medians are reported;
latencies under an offered load are those of all rounds together. A part that fails is reported, and the others go on.
Prints tables and one JSON line, of which `benchmarks.results` draws a picture for each part.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import rounded
from benchmarks.growth import batches, heads, rates, sizes
from benchmarks.growth.rounds import say
from benchmarks.growth.scene import Scene, Settings
from benchmarks.machine import hardware_line, machine, print_result
from benchmarks.results.views import terminal_text
from common.paths import ROOT
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step

RECIPE = "benchmarks/peers/vit-b-32.yaml"
PARTS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "heads": heads.measure,
    "sizes": sizes.measure,
    "rates": rates.measure,
    "batches": batches.measure,
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser, default=str(ROOT / RECIPE), help=f"built before (default {RECIPE})")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or not arguments.seconds > 0:
        parser.error(f"--rounds must be >= 1 and --seconds > 0, found {arguments.rounds} and {arguments.seconds:g}")
    return arguments


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures, as they go into the JSON line.

    Raises:
        RecipeError: the recipe is none.
        ManifestError: what it names is not built.
        RepositoryError, BuildError: its models cannot be installed.
    """
    recipe = recipe_of(arguments)
    parts = [part for part in PARTS if part in (arguments.only or PARTS)]
    how = {"recipe": recipe.name, "encoder": recipe.encoder.id, "precision": recipe.build.precision}
    how |= {"rounds": arguments.rounds, "seconds": arguments.seconds}
    with (
        tempfile.TemporaryDirectory(prefix="clipsieve-growth-") as folder,
        Scene(recipe, Path(folder), Settings(arguments.seconds, arguments.rounds)) as scene,
    ):
        return rounded(how | measured(scene, parts))


def measured(scene: Scene, parts: Sequence[str]) -> dict[str, Any]:
    """The parts by name, and under `problems` why any was not measured."""
    figures: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for part in parts:
        try:
            figures[part] = PARTS[part](scene)
        except Exception as error:  # of the server, the client or the machine; the other parts go on
            problems[part] = f"{type(error).__name__}: {error}"
            say(f"{part}: {problems[part]}")
    return figures | {"problems": problems}


def main(argv: list[str] | None = None) -> int:
    arguments, hardware = parse(argv), machine()
    figures = run(arguments)
    print(
        f"{hardware_line(hardware)}; {figures['encoder']}", terminal_text({"benchmark": "growth"} | figures), sep="\n\n"
    )
    print_result("benchmarks.growth", hardware, **figures)
    return 0 if any(part in figures for part in PARTS) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended, too
    sys.exit(run_step("benchmarks.growth", main))
