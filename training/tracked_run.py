"""A run as MLflow keeps it: its figures as a dict, and its pictures, drawn anew from the metrics of each epoch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common.manifest import write_atomically
from training.errors import StepError
from training.losses import Curve, TuningCurve
from training.plots import loss_curve_png, tuning_curve_png


def figures_of(run: Any) -> dict[str, Any]:
    """Id, status, parameters, metrics and tags of one of MLflow's runs."""
    return {
        "run_id": run.info.run_id,
        "status": run.info.status,
        "artifacts": run.info.artifact_uri,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
    }


def write_pictures(client: Any, run_id: str, folder: Path) -> list[Path]:
    """Write the course of a run's epochs and the pictures among its artefacts into a folder; their paths.

    Raises:
        StepError: the run has neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = kept_pictures(client, run_id) | drawn_pictures(client, run_id)
    if not files:
        raise StepError(
            f"run {run_id} has no metric loss_train of its epochs and no pictures; is it one of clipsieve's?"
        )
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in sorted(files)]


def drawn_pictures(client: Any, run_id: str) -> dict[str, bytes]:
    """The losses of each epoch, and the AUROC where it is tracked; nothing of a run without them."""
    names = ("loss_train", "loss_validation", "weight_decay", "auroc_validation")
    train, validation, weight_decay, auroc = (history(client, run_id, name) for name in names)
    if not train or len(train) != len(validation):
        return {}
    if auroc:
        return {"curves.png": tuning_curve_png(TuningCurve(train, validation, auroc=auroc))}
    return {"loss_curve.png": loss_curve_png(Curve(train, validation, weight_decay))}


def history(client: Any, run_id: str, name: str) -> list[float]:
    """A metric's values in the order of their steps; of a step that was tracked twice the last."""
    metrics = client.get_metric_history(run_id, name)
    by_step = {metric.step: metric.value for metric in sorted(metrics, key=lambda metric: metric.timestamp)}
    return [by_step[step] for step in sorted(by_step)]


def kept_pictures(client: Any, run_id: str) -> dict[str, bytes]:
    """The PNG files that the run kept of its head or its classifier."""
    places = [file.path for place in ("head", "classifier") for file in client.list_artifacts(run_id, place)]
    with tempfile.TemporaryDirectory(prefix="clipsieve-run-") as folder:
        return {
            Path(place).name: Path(client.download_artifacts(run_id, place, folder)).read_bytes()
            for place in places
            if place.endswith(".png")
        }
