"""Other thresholds for a head that is there, in seconds: nothing is trained, imported or measured on pictures again.

    python -m training.thresholds --recipe demo 0.3 0.8                  # allow, review from 0.3, block from 0.8
    python -m training.thresholds --recipe demo --head demo 'recall>=0.99'
    python -m training.thresholds --recipe demo                          # those that the recipe says

Operating points are chosen on the scores that the fit kept of rows held out from the weights; a published head has
none and takes numbers alone, and so does one from words or of an image classifier that saw no labelled pictures. What
each threshold does on the test part is measured anew. Writes head.json, report.json and the pictures of the scores,
then has build.head write model.onnx. Where CLIPSIEVE_ADMIN_KEY is set, serving.rollout has the server at --url serve
it; without, the commands that do are printed. Prints the path of head.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.admin_key import ADMIN_KEY
from common.head_figures import head_metrics
from common.manifest import HeadManifest, Threshold, read_encoder, write_atomically, write_manifest
from common.paths import encoder_folder, head_folder
from common.recipe_heads import read_recipe_head
from recipes.arguments import add_recipe_options, recipe_of, recipe_options
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import StepError
from training.head_files import columns_of, report_bytes
from training.head_thresholds import chosen_thresholds, measured_thresholds, metrics_at, read_scores
from training.operating_points import GRAMMAR, Chosen, parse_point
from training.plots import score_pngs
from training.progress import say
from training.published import published_head


def head_with(head: Head, values: list[str]) -> Head:
    """The recipe's head with these thresholds: numbers, or operating points.

    Raises:
        StepError: they are neither, both at once, do not ascend, or are not between 0 and 1 as probabilities are.
    """
    numbers = [number for value in values if (number := _number(value)) is not None]
    if numbers and len(numbers) < len(values):
        raise StepError(f"thresholds {' '.join(values)}: give numbers or operating points, not both")
    points = [] if numbers else [parse_point(value).text for value in values]
    try:
        return Head.model_validate(head.model_dump() | {"thresholds": numbers, "operating_points": points})
    except ValidationError as error:
        reasons = "; ".join(issue["msg"].removeprefix("Value error, ") for issue in error.errors())
        raise StepError(f"thresholds {' '.join(values)}: {reasons}") from error


@dataclass(frozen=True)
class Changed:
    """A head with other thresholds, before it is written."""

    manifest: HeadManifest
    files: dict[str, bytes]
    """Those that go with head.json, by name."""

    def write(self, folder: Path) -> None:
        """Write all files, head.json last."""
        for name, content in self.files.items():
            write_atomically(folder / name, content)
        write_manifest(self.manifest, folder / "head.json")


def changed_thresholds(folder: Path, manifest: HeadManifest, head: Head) -> Changed:
    """The head in `folder` with the thresholds of `head`; its weights, calibration and data stay. Writes nothing.

    Args:
        folder: of the head.
        manifest: its head.json.
        head: of the recipe, with the new thresholds.

    Raises:
        StepError: an operating point is out of reach, or the scores to choose it on were not kept.
    """
    if manifest.training.published is not None or _is_without_labels(manifest):
        return Changed(_with_fixed(manifest, head), {})
    if head.is_graded and head.operating_points:
        raise StepError(
            f"head {head.name}: operating points are for classes, this is a {head.task} head; give numbers in its units"
        )
    scores = read_scores(folder, manifest)
    chosen = chosen_thresholds(head, [parse_point(text) for text in head.operating_points], scores)
    divider = manifest.training.accuracy_divider
    thresholds = measured_thresholds(head, chosen, scores, divider)
    metrics = metrics_at(head, thresholds, scores, manifest.activation != "none", divider)
    if head.is_graded:
        metrics["sets"] = manifest.metrics.model_dump(mode="json").get("sets")
    changed = manifest.model_copy(update={"thresholds": thresholds, "metrics": head_metrics(metrics)})
    report = {"report.json": _report(folder, metrics, chosen)}
    return Changed(changed, report | score_pngs(changed, columns_of(changed, scores)))


def with_recipes_thresholds(manifest: HeadManifest, head: Head) -> HeadManifest:
    """The manifest as one that was made by the recipe with its present thresholds."""
    entry = head.settings()
    named = {key: entry[key] for key in ("thresholds", "operating_points")}
    return manifest.model_copy(update={"recipe": manifest.recipe | named})


def _is_without_labels(manifest: HeadManifest) -> bool:
    """True of a head from words, or of an image classifier, that no labelled pictures calibrated."""
    made = manifest.training.words is not None or manifest.training.classifier is not None
    return made and manifest.training.counts is None


def _with_fixed(manifest: HeadManifest, head: Head) -> HeadManifest:
    """The manifest of a published head, or of one without labelled pictures, with other thresholds."""
    published = manifest.training.published
    if head.operating_points:
        which = "the published head came without" if published else "a head without labelled pictures has none of"
        raise StepError(
            f"head {head.name}: {' '.join(head.operating_points)} would need held-out data, which {which}; "
            "give numbers, such as 0.3 0.8, or train a head"
        )
    values = head.thresholds or (
        head.fixed_thresholds if published is None else published_head(published.name).thresholds
    )
    row = [Threshold(value=value, operating_point="fixed") for value in values]
    return manifest.model_copy(update={"thresholds": [row for _ in manifest.labels]})


def _report(folder: Path, metrics: dict[str, Any], chosen: dict[str, list[Chosen]]) -> bytes:
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StepError(f"{path}: not readable ({error}); fit the head again") from error
    points = {name: [point.report() for point in row] for name, row in chosen.items()}
    return report_bytes(report | {"metrics": metrics, "operating_points": points})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _print_thresholds(before: HeadManifest, after: HeadManifest) -> None:
    for label, old, new in zip(after.labels, before.thresholds, after.thresholds, strict=True):
        say(f"{label}: {_row_text(old)} → {_row_text(new)}")
        for point in new:
            if point.realised is not None:
                say(f"  score >= {point.value:.4g}: {_figures_text(point)}")


def _row_text(row: list[Threshold]) -> str:
    return ", ".join(f"{point.value:.4g} ({point.operating_point})" for point in row) or "none"


def _figures_text(point: Threshold) -> str:
    """Recall, precision and false positive rate on the test part, each with its interval."""
    parts = []
    for name in ("recall", "precision", "fpr"):
        figure = getattr(point.realised, name)
        if figure is not None:
            low, high = figure.interval_95
            parts.append(f"{name.replace('fpr', 'false positive rate')} {figure.value:.3f} ({low:.3f} to {high:.3f})")
    return ", ".join(parts)


def _check_count(before: HeadManifest, after: HeadManifest, allowed: bool) -> None:
    """Refuse what the rollout would refuse, before anything is written.

    Raises:
        StepError: a server is to serve it, and a decision would mean something else.
    """
    old, new = ([len(row) for row in manifest.thresholds] for manifest in (before, after))
    if os.environ.get(ADMIN_KEY) and not allowed and old != new:
        raise StepError(
            f"head {after.name}: the number of thresholds of each label is {old} and would be {new}, so a decision of "
            "1 would mean something else to who reads the number; nothing was changed. Where it may, say "
            "--allow-other-decisions"
        )


def _serve(head: str, arguments: argparse.Namespace) -> None:
    """Build the head, and roll it out where there is a key.

    Raises:
        StepError: a step failed; it has said why.
    """
    recipe = recipe_options(arguments)
    build = ["build.head", *recipe, "--head", head]
    rollout = ["serving.rollout", head, *recipe, "--url", arguments.url]
    _run(build)
    if os.environ.get(ADMIN_KEY):
        _run(rollout + (["--allow-other-decisions"] if arguments.allow_other_decisions else []))
    else:
        words = shlex.join(recipe)
        say(
            f"to serve it: python -m build.verify {words} && python -m build.repository {words}, "
            f"then start the server; or, while one runs that has an admin key, set {ADMIN_KEY} and call: "
            f"python -m {shlex.join(rollout)}"
        )


def _run(command: list[str]) -> None:
    status = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        raise StepError(
            f"head.json has the new thresholds, but python -m {shlex.join(command)} ended with status {status}; "
            "see its message above"
        )


def _tell_recipe(recipe: Recipe, head: Head) -> None:
    key, values = ("operating_points", head.operating_points) if head.operating_points else ("thresholds", None)
    say(
        f"the recipe {recipe.name} says otherwise, and the next fit takes what it says; to keep these, write under the "
        f"head {head.name}: {key}: [{', '.join(map(str, values or head.thresholds))}]"
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.thresholds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "values", nargs="*", metavar="THRESHOLD", help=f"ascending numbers, or {GRAMMAR}; by default the recipe's"
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--url", default="127.0.0.1:8001", help=f"gRPC address of the server, with {ADMIN_KEY}")
    parser.add_argument(
        "--allow-other-decisions",
        action="store_true",
        help="also where a server gets another number of thresholds, and so decisions of another meaning",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    named = recipe.head(arguments.head)
    if named.source is not None:
        raise StepError(f"head {named.name} comes from {named.source}; change its thresholds with the recipe it is of")
    head = head_with(named, arguments.values) if arguments.values else named
    folder = head_folder(recipe, head)
    before = read_recipe_head(recipe, head, read_encoder(encoder_folder(recipe)))
    changed = changed_thresholds(folder, before if arguments.values else with_recipes_thresholds(before, head), head)
    _check_count(before, changed.manifest, arguments.allow_other_decisions)
    changed.write(folder)
    _print_thresholds(before, changed.manifest)
    if (head.thresholds, head.operating_points) != (named.thresholds, named.operating_points):
        _tell_recipe(recipe, head)
    _serve(head.name, arguments)
    print(folder / "head.json")


if __name__ == "__main__":
    sys.exit(run_step("training.thresholds", main))
