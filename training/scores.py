"""Scores of a head's pictures: embedding store + head artefact → a table to look at, and to review.

    python -m training.scores --recipe taste-vit-b-32 --out scores.csv
    python -m training.scores --recipe taste-vit-b-32 --describe       # the head as JSON: name, task, class_names

A row for each file that the data sets name, with the columns of `clipsieve score` and two more: `label`, what the data
sets and corrections say, and `group`, a number that near-duplicates share (`near_duplicate_cosine`; equal contents
always do). Before the head is fitted the scores are empty. What lies inside a shard or a table is no file and is left
out. Prints the path of the table.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from clipsieve.paths import path_from_text
from clipsieve.results import Head as ServedHead
from clipsieve.results import HeadScore, Score, Threshold
from clipsieve.run_record import RunRecord, ScoreFacts, write_record
from clipsieve.scoring import Columns
from common.manifest import HeadManifest, head_weights, read_encoder, write_atomically
from common.paths import encoder_folder, head_folder
from common.recipe_heads import read_recipe_head
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe
from training.calibrate import scores_from_logits
from training.errors import INTERRUPTED, StepError
from training.leakage import group_rows
from training.progress import say
from training.sources import HeadData
from training.store import store_folder
from training.store_view import Embeddings, read_embeddings, read_mentions

_OURS = slice(1, -2)
"""Columns of the head among those of a row: before them is its name, behind them error and version."""


def is_fitted(recipe: Recipe, head: Head) -> bool:
    """Return True if the recipe's head is there."""
    return (head_folder(recipe, head) / "head.json").is_file()


@dataclass(frozen=True)
class Scored:
    """A fitted head, and what it says of all pictures."""

    manifest: HeadManifest
    scores: np.ndarray  # (n, L) float32
    deviations: np.ndarray | None  # (n,) float32, of a head that gives them


def head_scores(recipe: Recipe, head: Head, embeddings: Embeddings) -> Scored | None:
    """The fitted head and its scores of all pictures; None before it is fitted.

    Raises:
        ManifestError: the head was made for another encoder or recipe.
    """
    if not is_fitted(recipe, head):
        return None
    from training.head import head_from_layers, logits_of  # and torch, which --describe needs not

    manifest = read_recipe_head(recipe, head, read_encoder(encoder_folder(recipe)))
    tensors = safetensors.numpy.load_file(head_weights(manifest, head_folder(recipe, head)))
    logits = logits_of(head_from_layers(manifest.layers, tensors), embeddings.embedding)
    deviations = np.exp(logits[:, 1]).astype(np.float32) if manifest.deviation else None
    return Scored(manifest, scores_from_logits(manifest, logits).astype(np.float32), deviations)


def near_duplicates(embeddings: Embeddings, head: Head) -> np.ndarray:
    """(n,) int64 a number that near-duplicates share; where nearly all pictures are near, equal contents alone."""
    try:
        return group_rows(embeddings.sha256, embeddings.embedding, head.fit.near_duplicate_cosine).ids
    except StepError as error:
        say(f"near-duplicates: {error}; only equal files are grouped")
        return group_rows(embeddings.sha256, embeddings.embedding, None).ids


def columns_of(head: Head, scored: Scored | None) -> Columns:
    """The columns that `clipsieve score` gives the head's scores, among others."""
    manifest = scored and scored.manifest
    thresholds = manifest and tuple(
        tuple(Threshold(point.value, point.operating_point) for point in row) for row in manifest.thresholds
    )
    served = ServedHead(
        name=head.name,
        labels=tuple(head.labels),
        class_names=tuple(head.class_names),
        task=head.task,
        thresholds=thresholds,
        gives_deviation=manifest is not None and manifest.deviation,
    )
    return Columns((served,), key="picture")


def score_rows(columns: Columns, scored: Scored | None, count: int) -> list[list[str]]:
    """For each picture the cells of its scores, decisions and class; empty before the head is fitted."""
    if scored is None:
        return [[""] * len(columns.names[_OURS])] * count
    (head,) = columns.heads
    passed = [
        (scored.scores[:, [label]] >= np.array([point.value for point in row], np.float32)).sum(axis=1)
        for label, row in enumerate(head.thresholds or ())
    ]
    rows = []
    for row, scores in enumerate(scored.scores):
        decisions = np.array([count[row] for count in passed], np.int32)
        deviation = None if scored.deviations is None else float(scored.deviations[row])
        result = HeadScore(scores, decisions, None, "", deviation)
        cells = columns.row("", Score(None, {head.name: result}))[_OURS]
        rows.append(["" if cell is None else str(cell) for cell in cells])
    return rows


def write_scores(out: Path, recipe: Recipe, head: Head, data: HeadData) -> int:
    """Write the table, and beside it what its columns cannot say; returns its number of rows.

    Raises:
        StepError: no data set was read for the head, or none of its pictures is a file.
    """
    embeddings = read_embeddings(data, read_encoder(encoder_folder(recipe)).fingerprint())
    scored = head_scores(recipe, head, embeddings)
    columns = columns_of(head, scored)
    cells = score_rows(columns, scored, len(embeddings))
    groups = near_duplicates(embeddings, head)
    row_of = {content: row for row, content in enumerate(embeddings.sha256)}
    mentions = read_mentions(data)
    files = dict(zip(mentions["path"].to_pylist(), mentions["sha256"].to_pylist(), strict=True))
    lines = [
        [path, *cells[row_of[content]], embeddings.label[row_of[content]] or "", str(groups[row_of[content]])]
        for path, content in files.items()
        if "#" not in path or os.path.exists(path_from_text(path))
    ]
    if not lines:
        raise StepError(f"{data.store}: none of the {len(files)} pictures is a file; review needs files")
    if len(lines) < len(files):
        say(f"{len(files) - len(lines)} pictures lie in shards or tables and are left out")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["image_path", *columns.names[_OURS], "label", "group"], *lines])
    write_record(out, RunRecord(_facts(columns)))
    write_atomically(out, text.getvalue().encode())
    return len(lines)


def _facts(columns: Columns) -> dict[str, ScoreFacts]:
    (head,) = columns.heads
    class_names = head.class_names if head.task == "binary" else ()
    thresholds = head.thresholds or [()] * len(head.labels)
    return {name: ScoreFacts(class_names, row) for name, row in zip(columns.score_names, thresholds, strict=True)}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="the table, .csv")
    what.add_argument("--describe", action="store_true", help="print what the head is, as JSON, and write nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    if arguments.describe:
        facts = {"recipe": recipe.name, "head": head.name, "task": head.task, "class_names": head.class_names}
        print(json.dumps(facts | {"fitted": is_fitted(recipe, head)}, ensure_ascii=False))
        return
    if arguments.out.suffix.lower() != ".csv":
        raise StepError(f"--out {arguments.out}: the table is a .csv; name it so")
    check_writable(arguments.out.parent)
    data = HeadData(arguments.store or store_folder(recipe), recipe.name, head.name)
    count = write_scores(arguments.out, recipe, head, data)
    say(f"head {head.name}: {count} pictures" + ("" if is_fitted(recipe, head) else ", no scores before it is fitted"))
    print(arguments.out)


if __name__ == "__main__":
    sys.exit(run_step("training.scores", main, INTERRUPTED))
