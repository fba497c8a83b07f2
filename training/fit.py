"""Embedding store → head: trains it, calibrates it, chooses its thresholds, measures it and writes it.

    python -m training.fit --recipe demo
    python -m training.fit --recipe demo --head demo --store artifacts/embeddings/shapes
    python -m training.fit --recipe demo --track                # and record the run with MLflow

All rows but the test split are cut into folds, each held out once: the folds choose how long to train, calibrate the
scores and choose the thresholds of the operating points. The weights are then fitted to all those rows. Every figure is
measured on the test split, which nothing else sees.

A head with `prompts` keeps the weights of its texts and is calibrated; with `fit.start: prompts` it is trained from
them, and compared with the texts alone and with plain training on the same test split. Both need build.texts before.

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

from common.manifest import (
    HeadManifest,
    Threshold,
    read_encoder,
)
from common.paths import encoder_folder, head_folder
from common.writing import check_writable
from recipes.errors import run_step
from recipes.schema import load_recipe
from training.errors import INTERRUPTED, StepError
from training.head_files import head_manifest, is_fitted, write_head, write_tracked_head
from training.head_fit import Fitted, fit_head, plan_of
from training.labelled import grouped_split, labelled_rows
from training.overview import print_overview
from training.progress import console, epochs_shown, say
from training.sources import HeadData, adopt_former_files
from training.store import adopt_former_folder, store_folder
from training.store_view import read_embeddings
from training.text_fit import print_starts, with_starts, with_words, words_for
from training.tracking import tracking_uri


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
    table.add_row("weights fitted to", f"{fitted.refit.rows} images" if fitted.refit.rows else "none, the texts' own")
    console.print(table)
    print_starts(fitted)
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
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument(
        "--if-changed", action="store_true", help="leave a head that was fitted to the same data by the same recipe"
    )
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument(
        "--track",
        nargs="?",
        const="",
        metavar="URI",
        help="record the run with MLflow; by default in MLFLOW_TRACKING_URI, else in artifacts/mlflow",
    )
    return parser.parse_args(argv)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    head = recipe.head(arguments.head)
    if head.source is not None:
        raise StepError(f"head {head.name} comes from {head.source}, it is not trained here; remove its source to fit")
    if head.published is not None:
        raise StepError(
            f"head {head.name} is the published {head.published.name}, it is not trained here; get it with: "
            f"python -m training.import_head --recipe {arguments.recipe}"
        )
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    plan_of(head)
    folder = arguments.store or store_folder(recipe)
    if arguments.store is None:
        adopt_former_folder(recipe, encoder)
    head_data = HeadData(folder, recipe.name, head.name)
    adopt_former_files(head_data)
    embeddings = read_embeddings(head_data, encoder)
    data = labelled_rows(embeddings, head.class_names, head.task)
    groups, split = grouped_split(data, embeddings.pictures, head, head_data.folder)
    print_overview(head_data, embeddings.pictures, split=split)
    if arguments.if_changed and is_fitted(head_folder(recipe, head), head, recipe, encoder, data, split):
        say(f"head {head.name}: fitted before to the same data, nothing to do")
        print(head_folder(recipe, head) / "head.json")
        return
    check_writable(head_folder(recipe, head))
    words = words_for(recipe, head, encoder, data)
    with epochs_shown(f"fit {head.name}") as progress:
        fitted = fit_head(data, head, _device(), split, groups.ids, progress, words)
    weights = safetensors.numpy.save(fitted.tensors)
    manifest = head_manifest(fitted, data, recipe, head, encoder, weights, groups)
    if words is not None:
        fitted = with_starts(fitted, data, head, split, groups.ids, words)
        manifest = with_words(manifest, words, head)
    uri = tracking_uri(arguments.track)
    if uri is None:
        path = write_head(head_folder(recipe, head), fitted, manifest, weights)
    else:
        path = write_tracked_head(head_folder(recipe, head), uri, head, fitted, manifest, weights)
    _print_result(fitted, manifest)
    print(path)


if __name__ == "__main__":
    sys.exit(run_step("training.fit", main, INTERRUPTED))
