"""The loop that fine-tunes a model, and goes on exactly where it was killed.

What is random follows from the seed and the place: the order of pictures from the epoch, each picture's changes from
the epoch and its row, what dropout leaves out from the step. So a state is the weights, the optimizer's moments and how
far it came, and a resumed run gives the curve of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.cpu import core_count
from common.manifest import Preprocessing, write_atomically
from recipes.encoder_section import Finetune
from recipes.serving_section import Serving
from training.calibrate import Activation, activated
from training.errors import StepError
from training.finetune_model import optimizer_of, training_mode
from training.finetune_pictures import ServedPictures, TrainingPictures, TuningData, batches
from training.losses import TuningCurve
from training.progress import say

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What a recipe calls a precision → Lightning's name."""
SAVE_EVERY_S = 600.0
"""Seconds after which a state is saved within an epoch; one is saved after each epoch anyway."""


@dataclass(frozen=True)
class Task:
    """A model to fine-tune, and what it learns from."""

    settings: Finetune
    activation: Activation
    """Of the model's outputs."""
    data: TuningData
    targets: np.ndarray
    """(n, outputs) float32, 0 or 1."""
    view: Preprocessing
    serving: Serving
    key: str
    """Sum of everything that the result follows from; a state of another key is another run's."""
    folder: Path
    """Of the states."""
    workers: int | None = None
    """Processes that decode pictures; by default one a core."""
    save_every_s: float = SAVE_EVERY_S


@dataclass(frozen=True)
class Tuned:
    """The outcome of a fine-tuning; its model holds the weights of the best epoch."""

    curve: TuningCurve
    images_per_s: float
    """Training pictures a second in the last epoch, without the time for measuring."""


@dataclass
class Place:
    """How far a run is; figures of the epoch are those of one device."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Of the epoch so far, over its pictures."""
    seen: int = 0
    """Pictures of the epoch so far."""
    images_per_s: float = 0.0
    """Of the last whole epoch, or of the part of it that this process did."""
    curve: TuningCurve = field(default_factory=TuningCurve)


class _Order:
    """The batches of the current epoch that are still to come, for a loader that keeps its processes."""

    def __init__(self, task: Task, rank: int, devices: int) -> None:
        self._task, self._rank, self._devices = task, rank, devices
        self.place = Place()

    def batches(self) -> list[np.ndarray]:
        settings = self._task.settings
        rows = self._task.data.split.train
        return batches(rows, self.place.epoch, settings.seed, settings.batch_size, max(2, self._devices))

    def __len__(self) -> int:
        return len(self.batches()) - self.place.step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.place.epoch
        for rows in self.batches()[self.place.step :]:
            yield [(epoch, int(row)) for row in rows[self._rank :: self._devices]]


def tune(fabric: Any, model: nn.Module, task: Task, progress: Callable[[Place, int], None]) -> Tuned:
    """Train the model until its AUROC on the validation part rises no more; goes on from a saved state of the task.

    Args:
        fabric: Lightning's, launched.
        model: as `training.finetune_model.new_model` gives it; holds the best weights afterwards.
        task: what is learned.
        progress: called after every step with how far the run is, and the pictures of an epoch.

    Raises:
        StepError: the loss is no longer finite, or a picture can no longer be read.
    """
    settings, split = task.settings, task.data.split
    device, outputs = fabric.device, task.targets.shape[1]
    model = model.to(memory_format=torch.channels_last)  # convolutions are faster so, and nothing else is slower
    optimizer = optimizer_of(model, settings)
    bare, (model, optimizer) = model, fabric.setup(model, optimizer)
    order = _Order(task, fabric.global_rank, fabric.world_size)
    steps = len(order.batches())
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(2, settings.epochs * steps),
        warmup_t=round(settings.warmup_epochs * steps),
        t_in_epochs=False,
    )
    loss_of = _loss(settings, task.activation, task.targets[split.train]).to(device)
    targets = torch.from_numpy(task.targets)
    pictures = TrainingPictures(task.data.samples, task.view, task.serving, settings.augment, settings.seed)
    train = _loader(pictures, order, task, device)
    held_out = ServedPictures(task.data.samples, task.view, task.serving)
    place = order.place = _resumed(fabric, model, optimizer, task)
    saved = time.monotonic()
    while place.epoch < settings.epochs and place.epoch - _best(place.curve) <= settings.patience:
        training_mode(bare)
        started, before = time.monotonic(), place.seen
        loss_sum = torch.full((), place.loss_sum, device=device)
        for pixels, rows in _from_worker(train):
            step = place.epoch * steps + place.step
            torch.manual_seed(_step_seed(settings.seed, step, fabric.global_rank))
            schedule.step_update(step + 1)  # the first step already moves
            images = normalised(pixels.to(device, non_blocking=True), task.view)
            loss = loss_of(model(images), targets[rows].to(device))
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach() * len(rows)
            place.step, place.seen = place.step + 1, place.seen + len(rows)
            progress(place, len(split.train))
            if place.step < steps and _all_agree(fabric, time.monotonic() - saved > task.save_every_s):
                place.loss_sum, total = float(loss_sum), _of_all(fabric, float(loss_sum), place.seen)
                _save(fabric, model, optimizer, task, replace(place, loss_sum=total[0], seen=int(total[1])))
                saved = time.monotonic()
        place.loss_sum = float(loss_sum)
        place.images_per_s = fabric.world_size * (place.seen - before) / (time.monotonic() - started)
        logits = model_logits(fabric, model, held_out, split.validation, task)
        _end_epoch(place, fabric, loss_of, logits, task, outputs)
        if _best(place.curve) == place.epoch - 1:
            _write_best(fabric, bare, task, place)
        _save(fabric, model, optimizer, task, place)
        saved = time.monotonic()
    bare.load_state_dict(safetensors.torch.load_file(_best_file(task, place.curve)))
    return Tuned(place.curve, place.images_per_s)


def alone(device: torch.device) -> Any:
    """Stands for Lightning's Fabric where one process works by itself, in fp32."""
    return SimpleNamespace(device=device, global_rank=0, world_size=1)


def normalised(pixels: torch.Tensor, view: Preprocessing) -> torch.Tensor:
    """(B, 3, S, S) uint8 → float32, as the exported encoder's graph does it."""
    mean = torch.tensor(view.mean, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(view.std, device=pixels.device).view(1, 3, 1, 1)
    images = pixels.to(torch.float32) * (1 / (255 * std)) - mean / std
    return images.contiguous(memory_format=torch.channels_last)


def model_logits(fabric: Any, model: nn.Module, pictures: Dataset, rows: np.ndarray, task: Task) -> np.ndarray:
    """(n, outputs) float64: the model in eval mode on pictures as they are served, shared by all devices."""
    mine = rows[fabric.global_rank :: fabric.world_size]
    size = 2 * max(1, task.settings.batch_size // fabric.world_size)
    batches_of_mine = [part.tolist() for part in np.split(mine, range(size, len(mine), size))]
    loader = _loader(pictures, batches_of_mine, task, fabric.device, keep=False)
    model.eval()
    logits = torch.zeros(len(task.targets), task.targets.shape[1], device=fabric.device)
    with torch.inference_mode():
        for pixels, at in _from_worker(loader) if len(mine) else ():
            logits[at.to(fabric.device)] = model(normalised(pixels.to(fabric.device), task.view)).float()
    if fabric.world_size > 1:
        logits = fabric.all_reduce(logits, reduce_op="sum")  # each row is of one device
    return logits[torch.from_numpy(rows).to(fabric.device)].double().cpu().numpy()


def _end_epoch(place: Place, fabric: Any, loss_of: nn.Module, logits: np.ndarray, task: Task, outputs: int) -> None:
    """Note the figures of an epoch and go to the next."""
    targets = task.targets[task.data.split.validation]
    held_out = loss_of(torch.from_numpy(logits).float().to(fabric.device), torch.from_numpy(targets).to(fabric.device))
    loss_sum, seen = _of_all(fabric, place.loss_sum, place.seen)
    loss, validation = loss_sum / seen, float(held_out)
    if not np.isfinite([loss, validation]).all():
        raise StepError(
            f"the loss is no longer finite in epoch {place.epoch} (training {loss:g}, validation {validation:g}); take "
            f"a lower finetune.learning_rate than {task.settings.learning_rate:g}, or another precision than "
            f"{task.settings.precision}"
        )
    place.curve.train.append(loss)
    place.curve.validation.append(validation)
    place.curve.auroc.append(mean_auroc(targets, activated(logits, task.activation)))
    place.epoch, place.step, place.seen, place.loss_sum = place.epoch + 1, 0, 0, 0.0


def _of_all(fabric: Any, loss_sum: float, seen: int) -> tuple[float, float]:
    """The sums of all devices."""
    if fabric.world_size == 1:
        return loss_sum, seen
    totals = fabric.all_reduce(torch.tensor([loss_sum, float(seen)], device=fabric.device), reduce_op="sum")
    return float(totals[0]), float(totals[1])


def mean_auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """The AUROC of each column that has both kinds, their mean; 0.5 where none has."""
    both = [at for at in range(targets.shape[1]) if 0 < targets[:, at].sum() < len(targets)]
    return float(np.mean([roc_auc_score(targets[:, at], scores[:, at]) for at in both])) if both else 0.5


class _Loss(nn.Module):
    """Cross-entropy or BCE of (B, outputs) logits against 0 and 1, smoothed."""

    def __init__(self, activation: Activation, smoothing: float, weight: torch.Tensor | None) -> None:
        super().__init__()
        self._activation, self._smoothing = activation, smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = self.get_buffer("weight") if self.weight is not None else None
        if self._activation == "softmax":
            label = targets.argmax(dim=1)
            return nn.functional.cross_entropy(logits, label, weight, label_smoothing=self._smoothing)
        smooth = targets * (1 - self._smoothing) + self._smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)


def _loss(settings: Finetune, activation: Activation, targets: np.ndarray) -> _Loss:
    if not settings.class_weights:
        return _Loss(activation, settings.label_smoothing, None)
    positives = targets.sum(axis=0)
    weight = (len(targets) - positives) / positives if activation == "sigmoid" else len(targets) / positives
    if activation == "softmax":
        weight = weight / len(positives)
    return _Loss(activation, settings.label_smoothing, torch.from_numpy(weight.astype(np.float32)))


class _WithRow(Dataset):
    """Pictures, each with its row."""

    def __init__(self, pictures: Dataset) -> None:
        self._pictures = pictures

    def __getitem__(self, key: Any) -> tuple[torch.Tensor, int]:
        return self._pictures[key], key[1] if isinstance(key, tuple) else key


def _loader(pictures: Dataset, batch_sampler: Any, task: Task, device: torch.device, keep: bool = True) -> DataLoader:
    workers = core_count() if task.workers is None else task.workers
    return DataLoader(
        _WithRow(pictures),
        batch_sampler=batch_sampler,
        num_workers=workers,
        persistent_workers=keep and workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def _from_worker(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches; an error in one of its processes is told without that process's traceback."""
    try:
        yield from loader
    except StepError as error:
        text = str(error)
        raise StepError(text.rpartition("StepError: ")[2].strip() or text) from None


def _all_agree(fabric: Any, here: bool) -> bool:
    """What the first process says, on all of them."""
    return here if fabric.world_size == 1 else bool(fabric.broadcast(here))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def _best(curve: TuningCurve) -> int:
    """The best epoch so far, or the first one as long as there is none."""
    return curve.best_epoch if curve.auroc else 0


def _state_file(task: Task) -> Path:
    return task.folder / f"state-{task.key[:12]}.ckpt"


def _best_file(task: Task, curve: TuningCurve) -> Path:
    return task.folder / f"best-{task.key[:12]}-{curve.best_epoch:04d}.safetensors"


def _write_best(fabric: Any, model: nn.Module, task: Task, place: Place) -> None:
    if fabric.is_global_zero:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(_best_file(task, place.curve), safetensors.torch.save(tensors))


def _save(fabric: Any, model: nn.Module, optimizer: Any, task: Task, place: Place) -> None:
    """Put the state in the place of the one before; what no state needs any more goes."""
    path = _state_file(task)
    partial = path.with_name(f".{path.name}.partial")
    fabric.save(partial, {"model": model, "optimizer": optimizer, "place": asdict(place)})
    if not fabric.is_global_zero:
        return
    partial.replace(path)
    kept = {path, _best_file(task, place.curve) if place.curve.auroc else path}
    for file in [*task.folder.glob("state-*.ckpt"), *task.folder.glob("best-*.safetensors")]:
        if file not in kept:
            with contextlib.suppress(OSError):
                file.unlink()


def _resumed(fabric: Any, model: nn.Module, optimizer: Any, task: Task) -> Place:
    """The place of the saved state, which model and optimizer take; the beginning where there is none."""
    path = _state_file(task)
    if not path.is_file():
        return Place()
    try:
        rest = fabric.load(path, {"model": model, "optimizer": optimizer}, weights_only=True)
        place = Place(**(rest["place"] | {"curve": TuningCurve(**rest["place"]["curve"])}))
    except Exception as error:
        raise StepError(f"{path}: not a state that can be gone on from ({error}); delete it to begin anew") from error
    if place.curve.auroc and not _best_file(task, place.curve).is_file():
        raise StepError(f"{_best_file(task, place.curve)}: not found, though the state needs it; delete {path} too")
    if not fabric.is_global_zero:
        place.loss_sum, place.seen = 0.0, 0  # the first process has what all had
    say(f"goes on in epoch {place.epoch}, after {place.step} steps of it")
    return place


def is_finished(task: Task) -> bool:
    """True if the saved state of the task is that of a finished run."""
    path = _state_file(task)
    if not path.is_file():
        return False
    place = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["place"]
    curve = TuningCurve(**place["curve"])
    return place["epoch"] >= task.settings.epochs or place["epoch"] - _best(curve) > task.settings.patience
