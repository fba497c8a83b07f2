"""Embedding store → head: trains it, measures it on held-out images and writes it with its manifest.

    python -m training.fit --recipe demo
    python -m training.fit --recipe demo --head demo --store artifacts/embeddings/shapes

Writes artifacts/heads/<head>/: head.safetensors, head.json, report.json, loss_curve.png,
score_histogram.png and roc.png, all once the fit has succeeded. Prints the path of head.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from rich.table import Table

from recipes.manifest import (
    EncoderFingerprint,
    HeadManifest,
    Layer,
    Threshold,
    read_encoder,
    tool_versions,
    write_atomically,
    write_manifest,
)
from recipes.paths import encoder_folder, head_folder
from recipes.schema import Head, Recipe, load_recipe
from training.errors import StepError, run_step
from training.head import head_from_layers, initial_tensors, new_layers, scores_of, tensors_of
from training.metrics import binary_metrics
from training.optimize import Curve, Examples, optimize
from training.plots import loss_curve_png, roc_png, score_histogram_png
from training.progress import console
from training.split import Split, split_rows
from training.store import Embeddings, read_embeddings, store_folder


@dataclass(frozen=True)
class Labelled:
    """The rows a head is fitted to."""

    embedding: np.ndarray  # (n, embed_dim) float32
    label: np.ndarray  # (n,) index into class_names
    sha256: list[str]

    @property
    def fingerprint(self) -> str:
        """Equal images with equal labels have equal fingerprints, wherever they lie."""
        lines = sorted(f"{content} {label}\n" for content, label in zip(self.sha256, self.label.tolist(), strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Fitted:
    """A trained head and what is known of it."""

    layers: list[Layer]
    tensors: dict[str, np.ndarray]
    split: Split
    curve: Curve
    test_scores: np.ndarray  # (n test,)
    metrics: dict[str, Any]
    device: str


def labelled_rows(embeddings: Embeddings, class_names: list[str]) -> Labelled:
    """The rows that have a label, checked.

    Raises:
        StepError: a label that is no class, only one class, or an embedding that is not finite.
    """
    rows = [row for row, label in enumerate(embeddings.label) if label is not None]
    names = [str(embeddings.label[row]) for row in rows]
    _check_classes(names, class_names)
    matrix = embeddings.embedding[rows]
    _check_finite(matrix, [embeddings.path[row] for row in rows])
    return Labelled(
        embedding=matrix,
        label=np.array([class_names.index(name) for name in names]),
        sha256=[embeddings.sha256[row] for row in rows],
    )


def fit_head(data: Labelled, head: Head, device: str) -> Fitted:
    """Split, train and measure; writes nothing."""
    fit = head.fit
    split = split_rows(data.label, data.sha256, head.class_names, fit.test_fraction, fit.validation_fraction, fit.seed)
    layers = new_layers(fit.hidden_sizes, fit.dropout)
    tensors = initial_tensors(data.embedding[split.train], fit.hidden_sizes, label_count=1, seed=fit.seed)
    module = head_from_layers(layers, tensors).to(device)
    train, validation = (
        Examples.from_arrays(data.embedding[rows], data.label[rows], device) for rows in (split.train, split.validation)
    )
    curve = optimize(module, train, validation, fit)
    scores = scores_of(module, data.embedding[split.test])[:, 0]
    metrics = binary_metrics(data.label[split.test], scores, head.fixed_thresholds[0], fit.seed)
    return Fitted(layers, tensors_of(module, layers), split, curve, scores, metrics, device)


def head_manifest(
    fitted: Fitted, data: Labelled, recipe: Recipe, head: Head, encoder: EncoderFingerprint, weights: bytes
) -> HeadManifest:
    """head.json for the weights, which are the bytes of head.safetensors."""
    return HeadManifest(
        name=head.name,
        recipe=head.model_dump(mode="json"),
        notice=recipe.notice,
        encoder=encoder,
        labels=head.labels,
        class_names=head.class_names,
        layers=fitted.layers,
        activation="sigmoid",
        calibrated=False,
        thresholds=[[Threshold(value=value, operating_point="fixed") for value in head.fixed_thresholds]],
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        metrics=fitted.metrics,
        training={
            "data_sha256": data.fingerprint,
            "counts": _counts(fitted.split, data.label, head.class_names),
            "seed": head.fit.seed,
            "best_epoch": fitted.curve.best_epoch,
            "device": fitted.device,
        },
        versions=tool_versions("torch", "numpy", "scikit-learn", "safetensors"),
    )


def write_head(folder: Path, fitted: Fitted, data: Labelled, manifest: HeadManifest, weights: bytes) -> Path:
    """Write all files of the head, everything computed first, and head.json last; returns its path."""
    test_labels = data.label[fitted.split.test]
    report = {"metrics": fitted.metrics, "training": manifest.training, "loss": asdict(fitted.curve)}
    files = {
        "report.json": (json.dumps(report, indent=2, allow_nan=False) + "\n").encode(),
        "loss_curve.png": loss_curve_png(fitted.curve),
        "score_histogram.png": score_histogram_png(
            test_labels, fitted.test_scores, manifest.class_names, fitted.metrics["threshold"]
        ),
        "roc.png": roc_png(test_labels, fitted.test_scores, fitted.metrics["auroc"]),
        "head.safetensors": weights,
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_manifest(manifest, folder / "head.json")
    return folder / "head.json"


def _check_classes(names: list[str], class_names: list[str]) -> None:
    found = sorted(set(names))
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise StepError(f"the store has labels {unknown}, the head's class_names are {class_names}; rename one of them")
    if len(found) < 2:
        raise StepError(
            f"the store has labelled images of {', '.join(found) or 'no class'} only; "
            f"a head needs both {class_names[0]} and {class_names[1]}: embed the missing ones"
        )


def _check_finite(matrix: np.ndarray, paths: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        first = ", ".join(paths[row] for row in broken[:3])
        raise StepError(
            f"{len(broken)} of {len(paths)} embeddings are not finite, the first of them: {first}. "
            "Delete the store and embed again; if that does not help, the encoder overflows on these images."
        )


def _counts(split: Split, labels: np.ndarray, class_names: list[str]) -> dict[str, dict[str, int]]:
    """Rows of each class in each part."""
    return {
        part: {name: int((labels[rows] == label).sum()) for label, name in enumerate(class_names)}
        for part, rows in split.parts().items()
    }


def _print_result(manifest: HeadManifest) -> None:
    metrics = manifest.metrics
    low, high = metrics["auroc_95_interval"]
    precision = metrics["precision"]
    table = Table(title=f"head {manifest.name}: {metrics['n']} test images", show_header=False)
    table.add_row("AUROC", f"{metrics['auroc']:.3f} (95 %: {low:.3f} to {high:.3f})")
    table.add_row("average precision", f"{metrics['average_precision']:.3f}")
    table.add_row(f"at threshold {metrics['threshold']:g}", f"{manifest.labels[0]} = positive")
    table.add_row("  recall", f"{metrics['recall']:.3f}")
    table.add_row("  precision", "none passed" if precision is None else f"{precision:.3f}")
    table.add_row("  accuracy", f"{metrics['accuracy']:.3f}")
    table.add_row("best epoch", str(manifest.training["best_epoch"]))
    console.print(table)
    if manifest.notice:
        console.print(manifest.notice)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<recipe>")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    head = recipe.head(arguments.head)
    if head.source is not None:
        raise StepError(f"head {head.name} comes from {head.source}, it is not trained here; remove its source to fit")
    encoder = read_encoder(encoder_folder(recipe.encoder)).fingerprint()
    data = labelled_rows(read_embeddings(arguments.store or store_folder(recipe), encoder), head.class_names)
    fitted = fit_head(data, head, "cuda" if torch.cuda.is_available() else "cpu")
    weights = safetensors.numpy.save(fitted.tensors)
    manifest = head_manifest(fitted, data, recipe, head, encoder, weights)
    path = write_head(head_folder(head), fitted, data, manifest, weights)
    _print_result(manifest)
    print(path)


if __name__ == "__main__":
    sys.exit(run_step(main))
