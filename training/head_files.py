"""The files of a fitted head: head.json, its weights, report and pictures, and whether those that are there will do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.head_figures import head_metrics
from common.head_training import Duplicates, HeadTraining
from common.manifest import (
    EncoderFingerprint,
    HeadManifest,
    ManifestError,
    head_weights,
    read_head,
    tool_versions,
    write_atomically,
    write_manifest,
)
from recipes.head_section import Head
from recipes.schema import Recipe
from training.head_fit import Fitted
from training.head_manifest import new_head
from training.head_thresholds import SCORES, Scores
from training.labelled import Labelled
from training.leakage import Groups
from training.plots import Column, loss_curve_png, score_pngs
from training.progress import say
from training.split import Split
from training.tracking import git_commit, started_run

_TOOLS = ("torch", "numpy", "scikit-learn", "safetensors")


def head_manifest(
    fitted: Fitted,
    data: Labelled,
    recipe: Recipe,
    head: Head,
    encoder: EncoderFingerprint,
    weights: bytes,
    groups: Groups,
) -> HeadManifest:
    """head.json for the weights, which are the bytes of head.safetensors."""
    return new_head(
        head,
        weights,
        _TOOLS,
        encoder=encoder,
        layers=fitted.layers,
        activation=fitted.plan.activation,
        calibrated=fitted.calibration is not None,
        calibration=fitted.calibration,
        prevalence=fitted.prevalence,
        deviation=fitted.plan.loss == "nll",
        thresholds=fitted.thresholds,
        metrics=head_metrics(fitted.metrics),
        score_distribution=fitted.score_distribution,
        training=HeadTraining(
            data_sha256=data.fingerprint,
            counts=_counts(fitted.split, data.label, head),
            duplicates=Duplicates(**groups.counts()),
            left_out=len(fitted.split.left_out),
            seed=head.fit.seed,
            loss=fitted.plan.loss,
            best_epoch=None if fitted.curve.weight_decay else fitted.curve.best_epoch,
            weight_decay=fitted.curve.chosen_weight_decay,
            device=fitted.device,
            accuracy_divider=fitted.divider,
            layer_weights=fitted.layer_weights,
            choices=fitted.choices or None,
            refit=fitted.refit,
            calibration=fitted.uncalibrated or None,
            warnings=fitted.warnings or None,
        ),
        made_by=recipe.name,
        notice=recipe.notice,
    )


def is_fitted(
    folder: Path, head: Head, recipe: Recipe, encoder: EncoderFingerprint, data: Labelled, split: Split
) -> bool:
    """Return True if the folder holds a head fitted to this data, in these parts, by the same recipe and versions."""
    try:
        manifest = read_head(folder)
        head_weights(manifest, folder)
    except ManifestError:
        return False
    return (
        (manifest.recipe, manifest.notice) == (head.settings(), recipe.notice)
        and manifest.encoder == encoder
        and manifest.training.data_sha256 == data.fingerprint
        and manifest.training.counts == _counts(split, data.label, head)
        and manifest.versions == tool_versions(*_TOOLS)
    )


def write_head(folder: Path, fitted: Fitted, manifest: HeadManifest, weights: bytes) -> Path:
    """Write all files of the head, everything computed first, and head.json last; returns its path."""
    training, loss = manifest.training.model_dump(mode="json"), asdict(fitted.curve)
    report = {"metrics": fitted.metrics, **fitted.report, "training": training, "loss": loss}
    files = {
        "report.json": report_bytes(report),
        "loss_curve.png": loss_curve_png(fitted.curve),
        **score_pngs(manifest, columns_of(manifest, fitted.scores)),
        SCORES: fitted.scores.to_bytes(manifest.weights_sha256),
        "head.safetensors": weights,
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_manifest(manifest, folder / "head.json")
    return folder / "head.json"


def report_bytes(report: dict[str, Any]) -> bytes:
    """Contents of report.json."""
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


def columns_of(manifest: HeadManifest, scores: Scores) -> list[Column]:
    """The test part's scores of each label, to be drawn with its thresholds."""
    return [
        Column(name, scores.test_targets[:, at], scores.test_scores[:, at], [t.value for t in manifest.thresholds[at]])
        for at, name in enumerate(manifest.labels)
    ]


def write_tracked_head(
    folder: Path, uri: str, head: Head, fitted: Fitted, manifest: HeadManifest, weights: bytes
) -> Path:
    """`write_head` within an MLflow run, whose id goes into head.json; nothing is written when MLflow refuses it."""
    with started_run(uri, head.name) as run:
        tags = {"data_sha256": str(manifest.training.data_sha256), "git_commit": git_commit() or "unknown"}
        run.log_fit(head, fitted.metrics, fitted.curve, tags | {"weights_sha256": manifest.weights_sha256})
        # Where the run is: the URI of a server, but not of a file on this machine.
        where = {"mlflow_run_id": run.id, "mlflow_tracking_uri": uri if uri.startswith("http") else "local"}
        tracked = manifest.model_copy(update={"training": manifest.training.model_copy(update=where)})
        path = write_head(folder, fitted, tracked, weights)
        version = run.log_head(path.parent, head.name)
        say(f"tracked as MLflow run {run.id}, model {head.name} version {version}")
    return path


def _counts(split: Split, labels: np.ndarray, head: Head) -> dict[str, dict[str, int]]:
    """Rows of each class in each part; of a regression all of them."""
    if head.is_graded:
        return {part: {head.class_names[0]: len(rows)} for part, rows in split.parts().items()}
    if head.task == "multilabel":
        sums = {part: labels[rows].sum(axis=0) for part, rows in split.parts().items()}
    else:
        sums = {
            part: np.bincount(labels[rows], minlength=len(head.class_names)) for part, rows in split.parts().items()
        }
    return {part: dict(zip(head.class_names, map(int, row), strict=True)) for part, row in sums.items()}
