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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from clipsieve.bands import band_of, words_of
from clipsieve.paths import path_from_text
from clipsieve.results import Threshold
from clipsieve.run_record import RunRecord, ScoreFacts, write_record
from clipsieve.scoring import shortest
from common.manifest import HeadManifest, head_weights, read_encoder, write_atomically
from common.paths import encoder_folder, head_folder
from common.recipe_heads import read_recipe_head
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Head, Recipe
from training.calibrate import scores_from_logits
from training.errors import INTERRUPTED, StepError
from training.leakage import group_rows
from training.progress import say
from training.sources import HeadData
from training.store import store_folder
from training.store_view import Embeddings, read_embeddings, read_mentions


def is_fitted(recipe: Recipe, head: Head) -> bool:
    """Return True if the recipe's head is there."""
    return (head_folder(recipe, head) / "head.json").is_file()


def head_scores(recipe: Recipe, head: Head, embeddings: Embeddings) -> tuple[HeadManifest, np.ndarray] | None:
    """The fitted head and its scores (n, L) float32 of all pictures; None before it is fitted.

    Raises:
        ManifestError: the head was made for another encoder or recipe.
    """
    if not is_fitted(recipe, head):
        return None
    from training.head import head_from_layers, logits_of  # and torch, which --describe needs not

    manifest = read_recipe_head(recipe, head, read_encoder(encoder_folder(recipe)))
    tensors = safetensors.numpy.load_file(head_weights(manifest, head_folder(recipe, head)))
    logits = logits_of(head_from_layers(manifest.layers, tensors), embeddings.embedding)
    return manifest, scores_from_logits(manifest, logits).astype(np.float32)


def near_duplicates(embeddings: Embeddings, head: Head) -> np.ndarray:
    """(n,) int64 a number that near-duplicates share; where nearly all pictures are near, equal contents alone."""
    try:
        return group_rows(embeddings.sha256, embeddings.embedding, head.fit.near_duplicate_cosine).ids
    except StepError as error:
        say(f"near-duplicates: {error}; only equal files are grouped")
        return group_rows(embeddings.sha256, embeddings.embedding, None).ids


def score_rows(
    columns: Sequence[str], manifest: HeadManifest | None, scores: np.ndarray | None, count: int
) -> list[list[str]]:
    """For each picture the cells of its scores, decisions and class.

    Args:
        columns: names, as `score_columns` gives them.
        manifest: of the head; None before it is fitted.
        scores: (n, L) of the head.
        count: n.
    """
    if manifest is None or scores is None:
        return [[""] * len(columns)] * count
    limits = [np.array([point.value for point in row], np.float32) for row in manifest.thresholds]
    rows, words = [], words_of(manifest.task)
    for row in scores:
        cells = [str(shortest(score)) for score in row]
        passed = [int((score >= limit).sum()) for score, limit in zip(row, limits, strict=True)]
        if manifest.task != "multiclass":
            pairs = zip(passed, map(len, limits), strict=True)
            cells += [band_of(each, count, words) if count else "" for each, count in pairs]
        if manifest.task == "binary":
            cells.append(manifest.class_names[int(passed[0] >= 1)])
        if manifest.task == "multiclass":
            cells.append(manifest.class_names[int(row.argmax())])
        rows.append(cells)
    return rows


def score_columns(head: Head) -> list[str]:
    """Names of the columns of scores, decisions and class, as `clipsieve score` has them."""
    names = [head.name] if len(head.labels) == 1 else [f"{head.name}_{label}" for label in head.labels]
    columns = [f"{name}_score" for name in names]
    columns += [f"{name}_decision" for name in names] if head.task != "multiclass" else []
    return columns + ([f"{head.name}_class_name"] if head.task in ("binary", "multiclass") else [])


def write_scores(out: Path, recipe: Recipe, head: Head, data: HeadData) -> int:
    """Write the table, and beside it what its columns cannot say; returns its number of rows.

    Raises:
        StepError: no data set was read for the head, or none of its pictures is a file.
    """
    embeddings = read_embeddings(data, read_encoder(encoder_folder(recipe)).fingerprint())
    manifest, scores = head_scores(recipe, head, embeddings) or (None, None)
    columns = score_columns(head)
    cells = score_rows(columns, manifest, scores, len(embeddings))
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
    csv.writer(text, lineterminator="\n").writerows([["image_path", *columns, "label", "group"], *lines])
    write_record(out, RunRecord(_facts(columns, head, manifest)))
    write_atomically(out, text.getvalue().encode())
    return len(lines)


def _facts(columns: Sequence[str], head: Head, manifest: HeadManifest | None) -> dict[str, ScoreFacts]:
    class_names = tuple(head.class_names) if head.task == "binary" else ()
    thresholds = manifest.thresholds if manifest else [[] for _ in head.labels]
    return {
        column: ScoreFacts(class_names, tuple(Threshold(point.value, point.operating_point) for point in row))
        for column, row in zip(columns, thresholds, strict=False)
    }


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
