"""Speed of fine-tuning beside a bare timm loop, what a resumed run costs, and what fine-tuned models reach.

    make lightning .trained/.installed .trained/.lite0
    python -m benchmarks.finetune --stamps FOLDER
    python -m benchmarks.finetune --stamps FOLDER --only speed --model convnext_tiny --image-size 200 --rounds 3
    python -m benchmarks.finetune --stamps FOLDER --only quality --epochs 20

--stamps is Debian's package tuxpaint-stamps-default, unpacked, as for `benchmarks.head_quality`: photo or drawing.
Speed is training images a second over one epoch, by turns, and the median of the rounds' ratios: `training.finetune`,
and a plain loop with timm's ImageDataset, model and AdamW, torch's DataLoader, and the same batches, augmentations and
worker processes. The share of the cores that both keep busy is of this process and its workers. A resumed run is timed
to its first step, beside one that begins.

The quality is that of the small CNN and a ConvNeXt-Atto from random weights, an EfficientNet-Lite0 from its ImageNet
weights, and a head on a frozen DINOv2 ViT-S/14, all on one split: the same pictures to train, to choose and to measure
on. Takes about 8 minutes. Prints both as tables; last comes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from timm.data.dataset import ImageDataset

from benchmarks.comparison import Comparison, comparisons_json, rounded
from benchmarks.head_quality import clipsieve, figures_of, sets_of, stamps_in
from benchmarks.machine import machine, print_result
from benchmarks.results.views import terminal_text
from benchmarks.trained_weights import LITE0, efficientnet_lite0
from common import paths
from common.cpu import core_count
from common.timm_preprocessing import timm_preprocessing
from recipes.schema import Recipe, parse_recipe
from training import finetune as step
from training.finetune_files import read_record
from training.finetune_model import data_config, new_model, optimizer_of
from training.finetune_pictures import labelled_samples, random_changes, read_tuning_data
from training.finetune_run import Task, normalised, tune
from training.intervals import auroc_interval
from training.split import Split
from training.tables import Columns

COLUMNS = Columns(None, "label", None, None, None)
CLASSES = ["drawing", "photo"]


class _FirstStep(Exception):
    """Ends a run that is timed to its first step."""


def recipe_of(name: str, **settings: Any) -> Recipe:
    """A recipe of the stamps' two kinds."""
    head = {"name": "kind", "class_names": CLASSES, "classifier": {}}
    section = {"finetune": {"maximum_unreadable": 0.05} | settings}
    return parse_recipe({"name": name, "description": "a benchmark", "encoder": section, "heads": [head]})


def folders_of(stamps: Path, folder: Path) -> Path:
    """The stamps as a folder per class, by copies with names of their own."""
    for path, kind in stamps_in(stamps).items():
        target = folder / kind / "_".join(path.relative_to(stamps).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def task_of(recipe: Recipe, data: Path) -> tuple[Any, torch.nn.Module, Task]:
    """Lightning's Fabric, a new model and what it is to learn; the parts of `training.finetune`."""
    head, settings = recipe.heads[0], recipe.encoder.finetune
    assert settings is not None
    fabric = step.fabric_of(recipe)
    model = new_model(settings, 1)
    view = timm_preprocessing(data_config(model, settings))
    state = paths.finetune_folder(recipe)
    state.mkdir(parents=True, exist_ok=True)
    pictures = read_tuning_data(recipe, head, labelled_samples(str(data), head, COLUMNS), view, state)
    fabric.launch()
    return fabric, model, step.task_of(recipe, head, pictures, view, 1, None)


def bare_epoch(task: Task, data: Path) -> float:
    """Images a second of a plain loop over one epoch of the same training pictures."""
    settings, rows = task.settings, task.data.split.train
    dataset = ImageDataset(str(data), transform=random_changes(task.view, settings.augment), class_map="")
    at = {str(path): number for number, (path, _) in enumerate(dataset.reader.samples)}  # pyright: ignore
    kept = [at[str(task.data.samples[row].path)] for row in rows.tolist()]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, kept),
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=core_count(),
        prefetch_factor=4,
    )
    model = new_model(settings, 1).to(memory_format=torch.channels_last).train()
    optimizer = optimizer_of(model, settings)
    loss_of = torch.nn.BCEWithLogitsLoss()
    started = time.monotonic()
    for pixels, label in loader:
        loss = loss_of(model(normalised(pixels, task.view)), label[:, None].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(kept) / (time.monotonic() - started)


def our_epoch(recipe: Recipe, data: Path) -> float:
    """Images a second of `training.finetune` over one epoch from its beginning."""
    fabric, model, task = task_of(recipe, data)
    for file in task.folder.glob("state-*.ckpt"):
        file.unlink()
    return tune(fabric, model, task, lambda place, total: None).images_per_s


def busy(seconds: Iterator[None]) -> float:
    """The share of the machine's cores that this process and its children keep busy while the iterator runs."""
    process = psutil.Process()
    before, started = _cpu_s(process), time.monotonic()
    for _ in seconds:
        pass
    return (_cpu_s(process) - before) / (time.monotonic() - started) / core_count()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def measured_speed(recipe: Recipe, data: Path, rounds: int) -> dict[str, Any]:
    """Images a second of both by turns, and the share of the cores that they keep busy."""
    rates: dict[str, list[float]] = {"training.finetune": [], "bare timm loop": []}
    shares: dict[str, list[float]] = {name: [] for name in rates}
    task = task_of(recipe, data)[2]
    for number in range(rounds):
        for name in rates if number % 2 else reversed(list(rates)):

            def one(name: str = name) -> Iterator[None]:
                rates[name].append(our_epoch(recipe, data) if name == "training.finetune" else bare_epoch(task, data))
                yield

            shares[name].append(busy(one()))
        print(f"round {number + 1} of {rounds}: {rounded({k: v[-1] for k, v in rates.items()})}", file=sys.stderr)
    return {"images_per_s": rates, "cores_busy": shares}


def first_step_s(recipe: Recipe, data: Path, resumed: bool) -> float:
    """Seconds from the call of the loop to the end of its first step, from the beginning or from a saved state."""
    fabric, model, task = task_of(recipe, data)
    if not resumed:
        for file in task.folder.glob("state-*.ckpt"):
            file.unlink()
    started, ended = time.monotonic(), []

    def stop(place: Any, total: int) -> None:
        ended.append(time.monotonic())
        raise _FirstStep

    try:
        tune(fabric, model, task, stop)
    except _FirstStep:
        return ended[0] - started
    raise RuntimeError("the run had nothing left to do")


def measured_resume(recipe: Recipe, data: Path) -> dict[str, float]:
    """Seconds to the first step from a state after one step, and from nothing."""
    fresh = first_step_s(recipe, data, resumed=False)
    fabric, model, task = task_of(recipe, data)
    steps = []

    def stop(place: Any, total: int) -> None:
        steps.append(place.step)
        if len(steps) == 2:
            raise _FirstStep

    with contextlib.suppress(_FirstStep):
        tune(fabric, model, replace(task, save_every_s=-1.0), stop)
    return {"resumed_s": first_step_s(recipe, data, resumed=True), "begun_s": fresh}


def quality_recipes(lite0: Path, image_size: int, epochs: int) -> dict[str, Recipe]:
    """The models that are fine-tuned, by what the table calls them."""
    common: dict[str, Any] = {"image_size": image_size, "resize": "squash", "epochs": epochs, "patience": epochs}
    models = {
        "CNN, from random weights": {"model": "clipsieve_cnn", "learning_rate": 0.002},
        "ConvNeXt-Atto, from random weights": {"model": "convnext_atto", "learning_rate": 0.001},
        "EfficientNet-Lite0, from ImageNet's": {"model": LITE0, "weights": str(lite0), "learning_rate": 0.0005},
    }
    return {name: recipe_of(f"quality-{at}", **(common | models[name])) for at, name in enumerate(models)}


def quality_figures(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Figures of each model on the test part of one split."""
    lite0 = efficientnet_lite0(data.parent / "lite0")
    recipes, rows = quality_recipes(lite0, arguments.edge, arguments.epochs), []
    for name, recipe in recipes.items():
        started = time.monotonic()
        head = recipe.heads[0]
        written = step.finetune(recipe, head, labelled_samples(str(data), head, COLUMNS))
        assert written is not None
        record = read_record(written)
        assert record is not None
        figures = record["metrics"]["test"]
        took = round(time.monotonic() - started)
        rows.append(_row(name, figures["auroc"], figures["auroc_95_interval"], figures["accuracy"], took))
        print(rows[-1], file=sys.stderr)
    return {"quality": [*rows, _frozen_row(arguments, next(iter(recipes.values())), data)]}


def _frozen_row(arguments: argparse.Namespace, recipe: Recipe, data: Path) -> dict[str, Any]:
    """A head of the defaults on a frozen DINOv2, on the very split of the others."""
    started = time.monotonic()
    (pictures,) = sets_of(argparse.Namespace(stamps=arguments.stamps, emoji=None, cache=arguments.cache))
    split = task_of(recipe, data)[2].data
    side = {split.data.sha256[row]: part for part, rows in split.split.parts().items() for row in rows}
    sides = np.array([side.get(content, "") for content in pictures.data.sha256])
    own = Split(*(np.flatnonzero(sides == part) for part in ("train", "validation", "test")))
    probabilities, label = clipsieve(pictures, own, 0), pictures.data.label[own.test]
    figures = figures_of(label, probabilities)
    positives = int(label.sum())
    spread = auroc_interval(figures["auroc"], positives, len(label) - positives)
    took = round(time.monotonic() - started)
    return _row("frozen DINOv2 ViT-S/14 + head", figures["auroc"], spread, figures["accuracy"], took)


def _row(name: str, auroc: float, interval: Any, accuracy: float, took_s: int) -> dict[str, Any]:
    spread = f"{interval[0]:.3f} to {interval[1]:.3f}"
    return {"model": name, "auroc": round(auroc, 4), "95 %": spread, "accuracy": round(accuracy, 4), "took_s": took_s}


def speed_figures(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The rounds of both loops, a resumed run's first step, and their targets."""
    settings = {"model": arguments.model, "image_size": arguments.image_size, "batch_size": arguments.batch_size}
    recipe = recipe_of("speed", **settings, resize="squash", epochs=1)
    speed = measured_speed(recipe, data, arguments.rounds)
    resume = measured_resume(recipe, data)
    ours, bare = (np.array(speed["images_per_s"][name]) for name in ("training.finetune", "bare timm loop"))
    ratios = ours / bare  # of a round, whose two epochs follow one another
    loops = [
        {
            "loop": name,
            "images_per_s": float(np.median(rates)),
            "cores_busy": float(np.median(speed["cores_busy"][name])),
        }
        for name, rates in speed["images_per_s"].items()
    ]
    resumed = resume["resumed_s"] / resume["begun_s"]
    comparisons = [
        Comparison("training images/s", float(np.median(ratios)), 0.95, True, "a bare timm loop"),
        Comparison("first step of a resumed run", resumed, 2.0, False, "one that begins"),
    ]
    figures = settings | {"loops": loops, "ratios": ratios.tolist(), "resume": resume}
    return rounded(figures) | {"comparisons": comparisons_json(comparisons)}


PARTS = {"speed": speed_figures, "quality": quality_figures}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stamps", type=Path, required=True, help="folder of tuxpaint-stamps-default")
    parser.add_argument("--only", choices=PARTS, help="one of the two parts")
    parser.add_argument("--model", default="convnext_atto", help="of the speed (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="of the speed (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the speed (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="epochs of each loop (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of the quality (default %(default)s)")
    parser.add_argument("--edge", type=int, default=96, help="pixels of the quality's pictures (default %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings for the quality")
    arguments, hardware = parser.parse_args(argv), machine()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="clipsieve-finetune-") as work:
        paths.ARTIFACTS = Path(work) / "artifacts"
        data = folders_of(arguments.stamps, Path(work) / "stamps")
        for part in [arguments.only] if arguments.only else PARTS:
            result |= PARTS[part](arguments, data)
    print(terminal_text({"benchmark": "finetune"} | result))
    print_result("benchmarks.finetune", hardware, **result)


if __name__ == "__main__":
    main()
