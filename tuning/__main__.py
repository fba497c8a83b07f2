"""Finds the serving numbers that are fastest on this machine, and writes a copy of the recipe with them.

    python -m tuning --recipe demo
    python -m tuning --recipe demo --out tuned.yaml --images photos/ --p99-ms 200 --resume

The recipe must be built (`make engines`) and perf_analyzer installed (`make perf`). Serves the ONNX file with the
embedded server under one setting after another and loads it: encoder instances and their threads, then preprocessing
processes, the largest batch, and the queue delay where the recipe has no queue limits. Candidates of a stage are
measured in interleaved rounds beside the best so far, and medians are compared; of settings within 3 % the cheapest is
taken. Writes the copy, beside it the measurements (.jsonl, with which --resume goes on after an interruption) and a
picture of all curves (.svg). It needs the machine for itself, about half a minute a setting and round.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from build.errors import BuildError
from common.cpu import core_count
from common.manifest import write_atomically
from common.paths import ARTIFACTS, DEFAULT_RECIPE
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Recipe
from tuning.candidates import STAGES, Room, Setting, Stage
from tuning.choice import curves
from tuning.conditions import (
    conditions,
    encoder_bytes,
    load_average,
    machine_line,
    memory_bytes,
    most_copies,
)
from tuning.curve import curves_svg
from tuning.recipe import recipe_file, tuned_text
from tuning.rows import Conditions, Measurements, Row, open_measurements
from tuning.server import Bench, Load
from tuning.sweep import Choice, Plan, Sweep


@dataclass(frozen=True)
class Tuned:
    """A whole sweep of a recipe."""

    recipe: Recipe
    copy: Path
    choice: Choice
    rows: list[Row]


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    print(tune(arguments).copy)


def parser(module: str = "tuning", text: str | None = __doc__) -> argparse.ArgumentParser:
    """Options of the sweep, for the module that runs it."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser, help="built; a name in recipes/ or the path of a YAML file")
    parser.add_argument("--out", type=Path, help="a .yaml file (default: artifacts/<recipe>/tuned.yaml)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to send (default: nine photographs)")
    parser.add_argument("--seconds", type=_over_0(float), default=3.0, help="at each concurrency (default: 3)")
    parser.add_argument(
        "--concurrency", type=_over_0(int), nargs="+", help="requests in flight (default: 1, and 1 to 8 a core)"
    )
    parser.add_argument("--p99-ms", type=_over_0(float), metavar="BUDGET", help="the winner's p99 is at most this")
    parser.add_argument("--rounds", type=_over_0(int), default=3, help="of each stage (default: 3)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all, in this order")
    parser.add_argument("--cores", type=_over_0(int), default=core_count(), help="to share out (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the measurements of an interrupted sweep")
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier sweep")
    return parser


def tune(arguments: argparse.Namespace) -> Tuned:
    """Sweep, and write the copy and the picture.

    Raises:
        RecipeError, ManifestError, RepositoryError: the recipe cannot be used, or is not built.
        BuildError: the outputs are there already, something is not installed, or no setting could be chosen.
    """
    recipe = recipe_of(arguments)
    text = recipe_file(arguments.recipe).read_text(encoding="utf-8")
    output = arguments.out or ARTIFACTS / recipe.name / "tuned.yaml"
    refuse_outputs(output, recipe_file(arguments.recipe), arguments.resume, arguments.overwrite)
    load = Load(tuple(arguments.concurrency or concurrencies(arguments.cores)), arguments.seconds, arguments.images)
    known = conditions(recipe, arguments.recipe, load)
    plan = plan_from(arguments, load, encoder_bytes(recipe))
    if (others := load_average()) > 0.5:
        _tell(f"{others:.1f} processes are running already; figures are good on a machine with nothing else to do")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ARTIFACTS, prefix=".tune-", ignore_cleanup_errors=True) as folder:
        bench = Bench(recipe, arguments.recipe, load, Path(folder))
        measurements = open_measurements(output.with_suffix(".jsonl"), known, arguments.resume)
        choice = Sweep(recipe, plan, measurements, bench.measure, _tell).run()
    comments = summary(choice, plan, known, arguments.recipe, arguments.overrides)
    write_outputs(output, text, recipe, choice, measurements, comments, plan, arguments.overrides)
    for line in comments:
        _tell(line)
    if recipe.name == DEFAULT_RECIPE:
        _tell(f"model_repository/ is written for {recipe.name}: give the copy a name, and its heads a source")
    return Tuned(recipe, output, choice, measurements.rows)


def refuse_outputs(output: Path, source: Path, resume: bool, force: bool) -> None:
    """
    Raises:
        BuildError: a file would be replaced that was not given up.
    """
    if output.suffix not in {".yaml", ".yml"}:
        raise BuildError(f"--out {output}: a recipe's file ends in .yaml")
    if output.resolve() == source.resolve():
        raise BuildError(f"--out {output} is the recipe itself; name another file")
    if output.exists() and not force:
        raise BuildError(f"{output} is there already; name another --out, or replace it with --overwrite")
    measured = output.with_suffix(".jsonl")
    if measured.exists() and not (resume or force):
        raise BuildError(f"{measured} holds an earlier sweep: go on with it (--resume), or begin again (--overwrite)")


def plan_from(arguments: argparse.Namespace, load: Load, file_bytes: int) -> Plan:
    stages: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage in arguments.stages)
    room = Room(arguments.cores, most_copies(file_bytes, memory_bytes()), max(load.concurrencies))
    return Plan(stages, room, arguments.rounds, arguments.p99_ms)


def concurrencies(cores: int) -> list[int]:
    """One request in flight, and one to eight a core."""
    return sorted({1, *(cores * factor for factor in (1, 2, 4, 8))})


def summary(
    choice: Choice, plan: Plan, known: Conditions, recipe_reference: str, overrides: Sequence[str] = ()
) -> list[str]:
    """What the copy's first lines and the last ones of the command tell; no folder of this machine."""
    reference = Path(recipe_reference).name if Path(recipe_reference).is_absolute() else recipe_reference
    budget = [] if plan.p99_budget_ms is None else ["--p99-ms", f"{plan.p99_budget_ms:g}"]
    values = [word for text in overrides for word in ("--set", text)]
    command = shlex.join(["python", "-m", "tuning", "--recipe", reference, *values, *budget])
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    rounds = "1 round" if plan.rounds == 1 else f"medians of {plan.rounds} rounds"
    changed = ", ".join(f"{key} {old} → {new}" for key, old, new in changes(choice))
    before = "the recipe's own setting gave no figure" if choice.before is None else f"before: {choice.before}"
    return [
        f"`{command}`, {date.today().isoformat()}",
        f"{machine_line(known)}; {versions}",
        f"{known['pictures']} pictures, one a request; {rounds} of {known['seconds']:g} s",
        f"changed: {changed}" if changed else "changed: nothing, none is faster than the recipe's own setting",
        f"now: {choice.point}",
        *([before] if changed else []),
    ]


def changes(choice: Choice) -> list[tuple[str, int, int]]:
    """(key, old value, new value)."""
    pairs = [(key, getattr(choice.own, key), getattr(choice.setting, key)) for key in Setting.model_fields]
    return [(key, old, new) for key, old, new in pairs if old != new]


def write_outputs(
    output: Path,
    text: str,
    recipe: Recipe,
    choice: Choice,
    measurements: Measurements,
    comments: list[str],
    plan: Plan,
    overrides: Sequence[str] = (),
) -> None:
    """The picture, then the copy of the recipe's `text`."""
    title = f"{recipe.name}: {comments[1]}"
    picture = curves_svg(curves(measurements.rows), choice.setting, choice.own, title, plan.p99_budget_ms)
    copy = tuned_text(text, recipe, choice.setting, comments, overrides)
    write_atomically(output.with_suffix(".svg"), picture)
    write_atomically(output, copy.encode())


def _over_0(kind: Callable[[str], float]) -> Callable[[str], float]:
    """For argparse: a number, and over 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be over 0, found {text}")
        return value

    return number


def _tell(line: str) -> None:
    print(f"tune: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_step("tuning", main, "stopped; what was measured is kept, go on with --resume"))
