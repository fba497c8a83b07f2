"""A whole sweep of `make tune`: what each setting of a built recipe brings on this machine, and which is chosen.

    make engines RECIPE=benchmarks/peers/vit-b-32.yaml TARGET=onnx && make perf
    python -m benchmarks.tune --recipe benchmarks/peers/vit-b-32.yaml --rounds 1 --seconds 2 --concurrency 1 4 8

Its options are those of `python -m tuning`, which it runs: the tuned copy of the recipe, the measurements and the
picture are written as there. Takes about 10 minutes with these. Prints a table, and as its last line JSON.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.comparison import rounded
from benchmarks.machine import hardware_line, machine, print_result
from benchmarks.results.views import terminal_text
from recipes.errors import run_step
from tuning.__main__ import Tuned, parser, tune
from tuning.choice import curves


def figures_of(tuned: Tuned) -> dict[str, Any]:
    """Collect what the sweep measured and chose, as it goes into the JSON line."""
    choice = tuned.choice
    settings = [
        {"setting": setting.model_dump(), "curve": [asdict(point) for point in points]}
        for setting, points in curves(tuned.rows).items()
    ]
    return rounded(
        {
            "recipe": tuned.recipe.name,
            "encoder": tuned.recipe.encoder.id,
            "precision": tuned.recipe.build.precision,
            "own": choice.own.model_dump(),
            "chosen": choice.setting.model_dump(),
            "now": asdict(choice.point),
            "before": choice.before and asdict(choice.before),
            "settings": settings,
        }
    )


def main(argv: list[str] | None = None) -> None:
    options = parser("benchmarks.tune", __doc__)
    arguments, hardware = options.parse_args(argv), machine()
    figures = figures_of(tune(arguments))
    print(hardware_line(hardware), terminal_text({"benchmark": "tune"} | figures), sep="\n\n")
    print_result("benchmarks.tune", hardware, rounds=arguments.rounds, seconds=arguments.seconds, **figures)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    sys.exit(run_step("benchmarks.tune", main, "stopped; what was measured is kept, go on with --resume"))
