"""Labelled images → an image classifier of your own: a whole model is trained, not a head on a frozen one.

    python -m training.finetune --recipe nsfw-convnext-tiny --data photos
    python -m training.finetune --recipe nsfw-cnn-baseline --data photos --track    # and record the run with MLflow
    make finetune RECIPE=nsfw-cnn-baseline DATA=photos      # then exported, embedded and calibrated: the whole way

--data is as for training.embed. The recipe's `encoder.finetune` says what is trained and how. Pictures that cannot be
read are listed and left out, up to a limit; near-duplicates, by a perceptual hash, share a side of the split.

The validation part chooses the epoch, and later calibrates the scores; the test part is looked at once, at the end.
A run that is killed goes on where it was when the same command is started again, and its result is the same, bit for
bit on one machine. Needs the extra `finetune`: make lightning.

Writes the folder that the recipe's encoder is loaded from, by default artifacts/classifiers/<recipe>/: config.json and
model.safetensors as timm's hub layout has them, finetune.json, pictures.parquet and curves.png. Prints its path.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from common.finetuned import EXTRA
from common.manifest import Preprocessing, sha256_of, tool_versions
from common.paths import finetune_folder, named_path
from common.timm_preprocessing import timm_preprocessing
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe, RecipeError
from training.data_options import add_data_options, columns_of
from training.errors import INTERRUPTED, StepError
from training.finetune_files import read_record, write_classifier, write_record
from training.progress import console, pictures_shown, say
from training.tracking import add_track_option, git_commit, started_run, tracking_uri

if TYPE_CHECKING:
    import torch

    from training.finetune_pictures import TuningData
    from training.finetune_run import Place, Task, Tuned

# torch takes seconds to import, and --help needs none of it: functions import what uses it.

_TOOLS = ("torch", "torchvision", "timm", "lightning-fabric", "imagehash", "numpy", "pillow")


def finetune(
    recipe: Recipe, head: Head, data_set: Any, track: str | None = None, workers: int | None = None
) -> Path | None:
    """Fine-tune the recipe's encoder and write the classifier's folder, whose path the first process returns.

    Args:
        recipe: with `encoder.finetune`.
        head: whose labels are learned.
        data_set: of --data.
        track: MLflow's address, empty for the default one, None for no tracking.
        workers: processes that decode pictures; by default one a core.

    Raises:
        StepError: the model, the pictures or the labels are not as they must be; or a package is missing.
    """
    fabric = fabric_of(recipe)
    from training.finetune_model import data_config, new_model
    from training.finetune_pictures import read_tuning_data
    from training.finetune_run import is_finished, tune

    settings, state = recipe.encoder.finetune, finetune_folder(recipe)
    assert settings is not None
    folder = named_path(Path(str(recipe.encoder.weights)))
    check_writable(folder.parent)
    check_writable(state)
    outputs = _outputs(head, recipe)
    model = new_model(settings, outputs)
    config = data_config(model, settings)
    view = timm_preprocessing(config).model_copy(update={"decode": recipe.encoder.decode})
    data = read_tuning_data(recipe, head, data_set, view, state) if fabric.local_rank == 0 else None
    fabric.launch()
    data = fabric.broadcast(data)
    assert data is not None
    task = task_of(recipe, head, data, view, outputs, workers)
    if fabric.is_global_zero:
        _print_data(head, data, settings.maximum_unreadable, state)
        record = read_record(folder)
        if record is not None and record.get("key") == task.key and is_finished(task):
            say(f"{folder}: fine-tuned before on the same pictures with the same settings, nothing to do")
            return folder
    with pictures_shown("fine-tune") as show:
        tuned = tune(
            fabric, model, task, lambda place, total: show(_text(place), place.step * settings.batch_size, total)
        )
    if fabric.is_global_zero:
        record = {"key": task.key} | _record(recipe, head, task, tuned, model.to(fabric.device))
        write_classifier(folder, model, head, config, record, data, tuned.curve)
        _print_result(head, record, tuned)
        _track(track, recipe, head, record, tuned, folder)
    fabric.barrier()
    return folder if fabric.is_global_zero else None


def fabric_of(recipe: Recipe) -> Any:
    """Lightning's Fabric for the devices and the precision of the recipe.

    Raises:
        StepError: a package is missing, or there are not so many devices.
    """
    try:
        import imagehash  # noqa: F401  # pyright: ignore[reportMissingImports] (its extra)
        from lightning_fabric import Fabric  # pyright: ignore[reportMissingImports] (its extra)
    except ImportError as error:
        raise StepError(f"fine-tuning needs the extra `finetune` ({error}); run: {EXTRA}") from error
    import torch

    from training.finetune_run import PRECISIONS

    settings = recipe.encoder.finetune
    if settings is None:
        raise RecipeError(
            f"recipe {recipe.name}: encoder has no section finetune, so there is nothing to fine-tune; add it "
            "(recipes/README.md), or train a head on the frozen encoder: python -m training.fit"
        )
    gpus = torch.cuda.device_count()
    if gpus and settings.devices > gpus:
        raise StepError(f"finetune.devices {settings.devices}: this machine has {gpus} GPUs; take {gpus}, or 0 for all")
    devices = settings.devices or gpus or 1
    accelerator = "cuda" if gpus else "cpu"
    strategy = "ddp" if devices > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=PRECISIONS[settings.precision])


def _outputs(head: Head, recipe: Recipe) -> int:
    """Logits of the model: one of a binary head with bce, else one a class.

    Raises:
        StepError: the loss does not fit the task.
    """
    loss = recipe.encoder.finetune.loss if recipe.encoder.finetune else None
    default = "cross_entropy" if head.task == "multiclass" else "bce"
    if (head.task, loss) in (("multiclass", "bce"), ("multilabel", "cross_entropy")):
        raise StepError(f"finetune.loss {loss} does not fit a {head.task} head; take {default}, or leave it out")
    return 1 if head.task == "binary" and loss != "cross_entropy" else len(head.class_names)


def task_of(
    recipe: Recipe, head: Head, data: TuningData, view: Preprocessing, outputs: int, workers: int | None
) -> Task:
    """What the recipe's model is to learn."""
    from training.finetune_run import Task
    from training.labelled import targets_of

    settings = recipe.encoder.finetune
    assert settings is not None
    softmax = outputs > 1 and head.task != "multilabel"
    targets = targets_of(data.data.label, "multiclass" if softmax else head.task, outputs)
    facts = {
        "settings": settings.model_dump(mode="json"),
        "weights": sha256_of(_weights_file(settings.weights)) if settings.weights else None,
        "classes": head.class_names,
        "data": data.data.fingerprint,
        "split": {part: [data.data.sha256[row] for row in rows] for part, rows in data.split.parts().items()},
        "view": view.model_dump(mode="json"),
        "versions": tool_versions(*_TOOLS),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    state = finetune_folder(recipe)
    return Task(settings, "softmax" if softmax else "sigmoid", data, targets, view, recipe.serving, key, state, workers)


def _weights_file(weights: Path) -> Path:
    path = named_path(weights)
    return path / "model.safetensors" if path.is_dir() else path


def _record(recipe: Recipe, head: Head, task: Task, tuned: Tuned, model: torch.nn.Module) -> dict[str, Any]:
    """Contents of finetune.json; the test part is looked at here, for the first time."""
    settings, data = task.settings, task.data
    figures = {}
    for part in ("validation", "test"):
        rows = data.split.parts()[part]
        figures[part] = _figures(head, task, rows, model)
    return {
        "kind": "finetune",
        "recipe": recipe.name,
        "head": head.name,
        "task": head.task,
        "class_names": head.class_names,
        "finetune": settings.model_dump(mode="json"),
        "data_sha256": data.data.fingerprint,
        "counts": {part: len(rows) for part, rows in data.split.parts().items()},
        "duplicates": data.groups.counts(),
        "unreadable": len(data.failures),
        "seed": settings.seed,
        "best_epoch": tuned.curve.best_epoch,
        "curve": dataclasses.asdict(tuned.curve),
        "images_per_s": round(tuned.images_per_s, 1),
        "metrics": figures,
        "versions": tool_versions(*_TOOLS),
    }


def _figures(head: Head, task: Task, rows: np.ndarray, model: torch.nn.Module) -> dict[str, Any]:
    """Figures with intervals of the uncalibrated scores, at 0.5, in fp32 and as pictures are served."""
    from training.calibrate import activated
    from training.finetune_pictures import ServedPictures
    from training.finetune_run import alone, model_logits
    from training.labelled import targets_of
    from training.metrics import task_metrics

    pictures = ServedPictures(task.data.samples, task.view, task.serving)
    device = next(model.parameters()).device
    scores = activated(model_logits(alone(device), model, pictures, rows, task), task.activation)
    if head.task == "binary":
        scores = scores[:, -1:]
    targets = targets_of(task.data.data.label[rows], head.task, len(head.labels))
    thresholds = [0.5] * len(head.labels)
    return task_metrics(head.task, head.labels, targets, scores, thresholds, seed=head.fit.seed, probabilities=True)


def _text(place: Place) -> str:
    curve = place.curve
    if not curve.auroc:
        return "epoch 0"
    auroc = f"AUROC {curve.auroc[-1]:.4f} (best {curve.auroc[curve.best_epoch]:.4f})"
    return f"epoch {place.epoch}; {auroc}, loss {curve.validation[-1]:.4f}"


def _print_data(head: Head, data: TuningData, limit: float, folder: Path) -> None:
    parts = ", ".join(f"{part} {len(rows)}" for part, rows in data.split.parts().items())
    near = data.groups.counts()["near_duplicate_groups"]
    say(f"head {head.name}: {len(data.data.sha256)} pictures ({parts}); {near} groups of near-duplicates")
    if data.failures:
        say(f"{len(data.failures)} files are left out (limit {limit:.0%}); why: {folder / 'unreadable.csv'}")


def _print_result(head: Head, record: dict[str, Any], tuned: Tuned) -> None:
    table = Table(title=f"head {head.name}, fine-tuned: {record['counts']['test']} test images", show_header=False)
    metrics = record["metrics"]["test"]
    macro = metrics.get("macro") or metrics
    for name, row in (("AUROC", macro.get("auroc")), ("average precision", macro.get("average_precision"))):
        spread = macro.get(f"{name.lower().replace(' ', '_')}_95_interval")
        if row is not None and spread is not None:
            table.add_row(name, f"{row:.3f} (95 %: {spread[0]:.3f} to {spread[1]:.3f})")
    if metrics.get("accuracy_95_interval"):
        low, high = metrics["accuracy_95_interval"]
        table.add_row("accuracy", f"{metrics['accuracy']:.3f} (95 %: {low:.3f} to {high:.3f})")
    table.add_row("best epoch", f"{tuned.curve.best_epoch} of {len(tuned.curve.auroc)}")
    table.add_row("training", f"{tuned.images_per_s:.0f} images/s")
    console.print(table)


def _track(track: str | None, recipe: Recipe, head: Head, record: dict[str, Any], tuned: Tuned, folder: Path) -> None:
    uri = tracking_uri(track)
    if uri is None:
        return
    with started_run(uri, f"finetune {recipe.name}") as run:
        params = {f"finetune.{key}": str(value)[:500] for key, value in record["finetune"].items() if value is not None}
        tags = {"data_sha256": record["data_sha256"], "git_commit": git_commit() or "unknown"}
        run.log_figures(params | {"head": head.name}, record["metrics"]["test"], tuned.curve, tags)
        run.log_files(folder, "classifier")
        where = {"mlflow_run_id": run.id, "mlflow_tracking_uri": uri if uri.startswith("http") else "local"}
        write_record(folder, record | where)
        say(f"tracked as MLflow run {run.id}")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="the head whose labels are learned; needed if there are several")
    add_data_options(parser)
    parser.add_argument("--workers", type=int, help="processes that decode pictures; default: one a core")
    add_track_option(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    from training.finetune_pictures import labelled_samples

    data_set = labelled_samples(arguments.data, head, columns_of(arguments), arguments.format)
    if folder := finetune(recipe, head, data_set, arguments.track, arguments.workers):
        print(folder)


if __name__ == "__main__":
    sys.exit(run_step("training.finetune", main, INTERRUPTED))
