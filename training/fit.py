"""Embedding store → head: trains it, calibrates it, chooses its thresholds, measures it and writes it.

    python -m training.fit --recipe demo
    python -m training.fit --recipe demo --head demo --store artifacts/embeddings/shapes
    python -m training.fit --recipe demo --track                # and record the run with MLflow

All rows but the test split are cut into folds, each held out once: the folds choose how long to train, calibrate the
scores and choose the thresholds of the operating points. The weights are then fitted to all those rows. Every figure is
measured on the test split, which nothing else sees.

A head with `prompts` keeps the weights of its texts and is calibrated; with `fit.start: prompts` it is trained from
them, and compared with the texts alone and with plain training on the same test split. Both need build.texts before.

Of grades, a line is printed for each set of rows: `train` (that the weights were fitted to), `validation` (held out
from the weights that scored them), `evaluation` (the test split) and `all`.

Near-duplicates share a side of the split, which the store remembers (training.split).

Writes artifacts/<recipe>/heads/<head>/: head.safetensors, head.json, report.json, loss_curve.png, score_histogram.png,
roc.png and reliability.png, all once the fit has succeeded. Prints the path of head.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.numpy
from rich.table import Table

from common.manifest import HeadManifest, Threshold
from common.paths import head_folder
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from training.errors import INTERRUPTED
from training.fit_inputs import FitInputs, read_inputs
from training.grades import figures_line
from training.head_files import head_manifest, is_fitted, write_head, write_tracked_head
from training.head_fit import Fitted, fit_head
from training.import_classifier import own_classifier
from training.overview import print_overview
from training.progress import console, epochs_shown, say
from training.text_fit import print_starts, with_starts, with_words, words_for
from training.tracking import add_track_option, tracking_uri


def _print_result(fitted: Fitted, manifest: HeadManifest) -> None:
    metrics = fitted.metrics
    table = Table(title=f"head {manifest.name}: {metrics['n']} test images", show_header=False)
    if "macro" in metrics:
        low, high = metrics["accuracy_95_interval"]
        table.add_row("accuracy", f"{metrics['accuracy']:.3f} (95 %: {low:.3f} to {high:.3f})")
    for name, value in (metrics.get("macro") or metrics).items():
        spread = (metrics.get("macro") or metrics).get(f"{name}_95_interval")
        if spread is not None and value is not None:
            shown = name.replace("_", " ").replace("auroc", "AUROC").replace("ece", "ECE") if name != "recall" else name
            table.add_row(shown, f"{value:.3f} (95 %: {spread[0]:.3f} to {spread[1]:.3f})")
    for label, row in zip(manifest.labels, manifest.thresholds, strict=True):
        for point in row:
            table.add_row(f"{label}, {point.operating_point}", f"score >= {point.value:.4g}{_recall_text(point)}")
    if report := fitted.report["calibration"]:
        table.add_row("ECE before, after", f"{report['before']['ece']:.4f}, {report['after']['ece']:.4f}")
    if (decay := fitted.curve.chosen_weight_decay) is not None:
        table.add_row("weight decay", f"{decay:.3g}")
    elif fitted.refit.rows:
        table.add_row("best epoch", str(fitted.curve.best_epoch))
    if fitted.layer_weights is not None:
        table.add_row("weights of the layers", ", ".join(f"{weight:.3f}" for weight in fitted.layer_weights))
    if spread := fitted.report.get("deviation"):
        table.add_row("deviation", f"{spread['mean']:.3g}; 1.96 of them hold {spread['within_95']:.1%}, 95 % is meant")
    choices = f" and {fitted.choices} choices" if fitted.choices else ""
    fitted_to = f"{fitted.refit.rows} images{choices}" if fitted.refit.rows else "none, they are given"
    table.add_row("weights fitted to", fitted_to)
    console.print(table)
    print_starts(fitted)
    for name, figures in metrics.get("sets", {}).items():
        say(figures_line(name, figures))
    for warning in fitted.warnings:
        say(f"warning: {warning}")
    if manifest.notice:
        say(manifest.notice)


def _recall_text(point: Threshold) -> str:
    if point.realised is None or point.realised.recall is None:
        return ""
    recall = point.realised.recall
    low, high = recall.interval_95
    return f": recall {recall.value:.3f} (95 %: {low:.3f} to {high:.3f})"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument(
        "--if-changed", action="store_true", help="leave a head that was fitted to the same data by the same recipe"
    )
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    add_track_option(parser)
    return parser.parse_args(argv)


def device_name() -> str:
    """Torch's name of the device to train on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fit_and_save(inputs: FitInputs, track: str | None = None) -> Path:
    """Fit a head, write its files and print what came of it; returns the path of head.json.

    Args:
        inputs: the head and its data.
        track: MLflow's address, empty for the default one, None for no tracking.
    """
    head, folder = inputs.head, head_folder(inputs.recipe, inputs.head)
    check_writable(folder)
    data, split, groups = inputs.data, inputs.split, inputs.groups.ids
    words = words_for(inputs.recipe, head, inputs.encoder, data)
    classifier = None if head.classifier is None else own_classifier(inputs.recipe, head)
    given = words if classifier is None else classifier.weights
    with epochs_shown(f"fit {head.name}") as progress:
        fitted = fit_head(data, head, device_name(), split, groups, progress, inputs.layer_widths, given)
    weights = safetensors.numpy.save(fitted.tensors)
    manifest = head_manifest(fitted, data, inputs.recipe, head, inputs.encoder, weights, inputs.groups)
    if words is not None:
        fitted = with_starts(fitted, data, head, split, groups, words)
        manifest = with_words(manifest, words, head)
    if classifier is not None:
        manifest = classifier.in_manifest(manifest)
    uri = tracking_uri(track)
    if uri is None:
        path = write_head(folder, fitted, manifest, weights)
    else:
        path = write_tracked_head(folder, uri, head, fitted, manifest, weights)
    _print_result(fitted, manifest)
    return path


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    inputs = read_inputs(recipe, head, arguments.store)
    print_overview(inputs.head_data, inputs.pictures, split=inputs.split)
    folder = head_folder(recipe, head)
    if arguments.if_changed and is_fitted(folder, head, recipe, inputs.encoder, inputs.data, inputs.split):
        say(f"head {head.name}: fitted before to the same data, nothing to do")
        print(folder / "head.json")
        return
    print(fit_and_save(inputs, arguments.track))


if __name__ == "__main__":
    sys.exit(run_step("training.fit", main, INTERRUPTED))
