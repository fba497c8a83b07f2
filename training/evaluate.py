"""Head artefact + embedding store → report.json, plots and a model card.

    python -m training.evaluate --recipe demo --out artifacts/reports/demo
    python -m training.evaluate --recipe demo --head demo --store artifacts/embeddings/shapes --slice path --all \
        --out artifacts/reports/demo

What is measured is the artefact, head.json and head.safetensors, whether it was trained here or imported. A head that
was trained here is measured on the test split of the store, on all labelled rows with --all; an imported one, which
knows no split, on all labelled rows. --slice repeats the figures for every value of a column of the store, a number
with many values in four ranges. Prints the path of report.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from clipsieve.arrow_paths import read_schema
from common.manifest import (
    HeadManifest,
    head_weights,
    read_encoder,
    write_atomically,
)
from common.paths import encoder_folder, head_folder
from common.recipe_heads import read_recipe_head
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from training.calibrate import activated, brier, calibrated_logits, ece, scores_from_logits
from training.errors import INTERRUPTED, StepError
from training.labelled import Labelled, grouped_split, labelled_rows, targets_of
from training.losses import Curve
from training.metrics import task_metrics
from training.model_card import model_card
from training.operating_points import realised
from training.parquet_files import read_columns
from training.plots import Column, evaluation_pngs, loss_curve_png
from training.progress import say
from training.sources import HeadData
from training.store import part_files, store_folder
from training.store_view import Embeddings, Pictures, read_embeddings

_MOST_SLICES = 50
_MANY_NUMBERS = 12  # distinct values of a number, above which it is cut into ranges
_FEWEST_ROWS = 10
_COLUMNS = ("key", "path", "sha256", "label", "split", "data_label", "corrected")


@dataclass(frozen=True)
class Measured:
    """The artefact's answers for the rows it is measured on."""

    rows: str  # `test` or `all`
    row: np.ndarray  # (n,) number of each row in the store
    targets: np.ndarray  # (n, L)
    logits: np.ndarray  # (n, L)
    scores: np.ndarray  # (n, L)

    def __getitem__(self, kept: np.ndarray) -> Measured:
        return Measured(self.rows, self.row[kept], self.targets[kept], self.logits[kept], self.scores[kept])


def measure(
    manifest: HeadManifest, tensors: dict[str, np.ndarray], data: Labelled, rows: np.ndarray, which: str
) -> Measured:
    """Run the artefact on rows of the data.

    Raises:
        StepError: too few rows.
    """
    from training.head import head_from_layers, logits_of  # and torch, which --help needs not

    if len(rows) < _FEWEST_ROWS:
        raise StepError(
            f"{len(rows)} labelled images to evaluate on; it takes at least {_FEWEST_ROWS}, better hundreds"
        )
    logits = logits_of(head_from_layers(manifest.layers, tensors), data.embedding[rows])
    targets = targets_of(data.label[rows], manifest.task, len(manifest.labels))
    return Measured(which, data.row[rows], targets, logits, scores_from_logits(manifest, logits))


def rows_to_measure(data: Labelled, pictures: Pictures, folder: Path, manifest: HeadManifest) -> np.ndarray:
    """The test rows of the split that the head was trained with; rows added to the store since are drawn on."""
    _, split = grouped_split(data, pictures, Head.model_validate(manifest.recipe), folder)
    return split.test


def report_of(manifest: HeadManifest, data: Labelled, measured: Measured, slices: dict[str, np.ndarray]) -> dict:
    """report.json.

    Args:
        slices: (n,) bool, the rows of each slice.
    """
    return {
        "head": manifest.name,
        "revision": f"{manifest.revision:016x}",
        "weights_sha256": manifest.weights_sha256,
        "rows": {"which": measured.rows, "n": len(measured.row), "data_sha256": data.fingerprint},
        "same_data_as_trained": manifest.training.data_sha256 == data.fingerprint,
        "metrics": _metrics(manifest, measured),
        "operating_points": _operating_points(manifest, measured),
        "calibration": _calibration(manifest, measured),
        "slices": {name: _slice_metrics(manifest, measured[rows]) for name, rows in slices.items()},
    }


def slices_of(folder: Path, embeddings: Embeddings, column: str | None, row: np.ndarray) -> dict[str, np.ndarray]:
    """Map each value of the column to the rows (n,) bool that have it; numbers of many values in four ranges.

    Raises:
        StepError: the store has no such column, or it has too many different texts.
    """
    if column is None:
        return {}
    values = _column(folder, embeddings, column)
    values = [values[number] for number in row]
    distinct = sorted(set(values), key=lambda value: (value is None, value))
    if len(distinct) > _MANY_NUMBERS and all(isinstance(value, (int, float)) for value in distinct):
        return _ranges(column, np.array(values, float))
    if len(distinct) > _MOST_SLICES:
        raise StepError(
            f"column {column} has {len(distinct)} different values in {len(values)} rows, more than {_MOST_SLICES}; "
            "slice by a column that groups the images"
        )
    return {f"{column}={value}": np.array([other == value for other in values]) for value in distinct}


def _metrics(manifest: HeadManifest, measured: Measured) -> dict[str, Any]:
    return task_metrics(
        manifest.task,
        manifest.labels,
        measured.targets,
        measured.scores,
        [row[0].value if row else 0.5 for row in manifest.thresholds],
        seed=0,
        probabilities=manifest.activation != "none",
        prevalence=manifest.prevalence.target if manifest.prevalence else None,
        divider=manifest.training.accuracy_divider,
    )


def _slice_metrics(manifest: HeadManifest, measured: Measured) -> dict[str, Any]:
    """The figures, or why there are none."""
    if len(measured.row) < _FEWEST_ROWS:
        return {"n": len(measured.row), "reason": f"fewer than {_FEWEST_ROWS} rows"}
    return _metrics(manifest, measured)


def _operating_points(manifest: HeadManifest, measured: Measured) -> dict[str, list[dict[str, Any]]]:
    if manifest.is_graded:
        return {}
    target = manifest.prevalence.target if manifest.prevalence else None
    return {
        name: [
            {
                "operating_point": point.operating_point,
                "threshold": point.value,
                **realised(measured.targets[:, at], measured.scores[:, at], point.value, target),
            }
            for point in manifest.thresholds[at]
        ]
        for at, name in enumerate(manifest.labels)
    }


def _calibration(manifest: HeadManifest, measured: Measured) -> dict[str, Any] | None:
    """ECE and Brier score without and with the calibration, at these rows' own prevalence, mean over the labels."""
    if manifest.calibration is None:
        return None
    before = activated(measured.logits, manifest.activation)
    after = activated(calibrated_logits(measured.logits, manifest.calibration), manifest.activation)
    columns = range(measured.targets.shape[1])
    return {
        name: {
            "ece": float(np.mean([ece(scores[:, at], measured.targets[:, at]) for at in columns])),
            "brier": float(np.mean([brier(scores[:, at], measured.targets[:, at]) for at in columns])),
        }
        for name, scores in (("before", before), ("after", after))
    }


def _column(folder: Path, embeddings: Embeddings, column: str) -> Sequence[Any]:
    """A value for each row of the store."""
    if column in _COLUMNS:
        return getattr(embeddings.pictures, column)
    value_of: dict[str, Any] = {}
    for part in part_files(folder):
        names = read_schema(part).names
        if column not in names or column == "embedding":
            offered = ", ".join([*_COLUMNS, *(name for name in names if name not in ("embedding", *_COLUMNS))])
            raise StepError(f"{part}: no column {column!r} to slice by; there are {offered}")
        table = read_columns(part, ["sha256", column])
        value_of.update(zip(table["sha256"].to_pylist(), table[column].to_pylist(), strict=True))
    return [value_of[content] for content in embeddings.sha256]


def _ranges(column: str, values: np.ndarray) -> dict[str, np.ndarray]:
    edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    pairs = itertools.pairwise(edges)
    return {f"{column} {low:g} to {high:g}": place == number for number, (low, high) in enumerate(pairs)}


def _files(folder: Path, manifest: HeadManifest, measured: Measured, report: dict[str, Any]) -> dict[str, bytes]:
    """Everything that is written, by file name."""
    columns = [
        Column(name, measured.targets[:, at], measured.scores[:, at], [t.value for t in manifest.thresholds[at]])
        for at, name in enumerate(manifest.labels)
    ]
    files = evaluation_pngs(manifest, columns)
    if (curve := _loss_curve(folder)) is not None:
        files["loss_curve.png"] = loss_curve_png(curve)
    files["model_card.md"] = model_card(manifest, report, sorted(files)).encode()
    return files | {"report.json": (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()}


def _loss_curve(folder: Path) -> Curve | None:
    """Read the loss curve from the report of the fit, which an imported head does not have."""
    path = folder / "report.json"
    loss = json.loads(path.read_text()).get("loss") if path.is_file() else None
    return Curve(**loss) if loss else None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--slice", metavar="COLUMN", help="of the store")
    parser.add_argument("--all", action="store_true", help="all labelled rows, not only the test split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    encoder = read_encoder(encoder_folder(recipe))
    head = recipe.head(arguments.head)
    folder, manifest = head_folder(recipe, head), read_recipe_head(recipe, head, encoder)
    tensors = safetensors.numpy.load_file(head_weights(manifest, folder))
    store = arguments.store or store_folder(recipe)
    head_data = HeadData(store, recipe.name, head.name)
    embeddings = read_embeddings(head_data, encoder.fingerprint())
    data = labelled_rows(embeddings, manifest.class_names, manifest.task)
    everything = arguments.all or manifest.training.data_sha256 is None
    rows = (
        np.arange(len(data.label))
        if everything
        else rows_to_measure(data, embeddings.pictures, head_data.folder, manifest)
    )
    check_writable(arguments.out)
    measured = measure(manifest, tensors, data, rows, "all" if everything else "test")
    slices = slices_of(store, embeddings, arguments.slice, measured.row)
    report = report_of(manifest, data, measured, slices)
    for name, content in _files(folder, manifest, measured, report).items():
        write_atomically(arguments.out / name, content)
    say(f"head {manifest.name}: {len(measured.row)} {measured.rows} images, see model_card.md")
    print(arguments.out / "report.json")


if __name__ == "__main__":
    sys.exit(run_step("training.evaluate", main, INTERRUPTED))
