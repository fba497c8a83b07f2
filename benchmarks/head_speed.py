"""How fast a head with hidden layers is fitted: the time of its matrix products alone and a plain loop beside ours.

    python -m benchmarks.head_speed                                   # about 5 minutes on two cores
    python -m benchmarks.head_speed --rows 4000 --rounds 2 --threads 1
    python -m benchmarks.head_speed --precision fp32 bf16             # beside `fit.precision: bf16`, for a CPU with AMX

Rows of two classes, the layers of LAION's H14 head. First an epoch of `training.optimize`, its held-out loss included,
in turns with the matrix products alone of the same epoch (each layer's output, the gradients of its weights and of its
input; of held-out rows the outputs), always at fp32: processor time and wall time, medians of the ratios round by
round. Then the plain loop of LAION's training guide (TensorDataset, a DataLoader of 32, Adam, MSE) and ours on the same
rows until our held-out loss is at or below the guide's best, which is early: its own rises soon. Prints tables and one
JSON line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.comparison import Comparison, comparisons_json
from benchmarks.machine import machine, print_result
from benchmarks.results.views import terminal_text
from recipes.head_section import Fit
from training.head import head_from_layers, hidden_layers, initial_tensors, new_layers
from training.losses import Curve
from training.optimize import Examples, Fold, Progress, optimize_folds

EMBED_DIM = 768
SEPARATION = 3.0
"""Distance of the classes, in standard deviations."""
GUIDE_BATCH_SIZE = 32
TARGET_PRODUCTS = 1.15
_SEED = 0


@dataclass(frozen=True)
class Data:
    """Two classes on the unit sphere; a ninth as many rows as are trained on are held out."""

    train: np.ndarray  # (n, D) float32
    train_label: np.ndarray  # (n,) 0 or 1
    held_out: np.ndarray
    held_out_label: np.ndarray


def synthetic(rows: int) -> Data:
    """Gaussians, some columns with more spread than others, normalised."""
    rng, count = np.random.default_rng(_SEED), rows * 10 // 9
    label = rng.integers(0, 2, count)
    embedding = rng.standard_normal((count, EMBED_DIM), dtype=np.float32) * rng.uniform(0.3, 3, EMBED_DIM)
    direction = rng.standard_normal(EMBED_DIM)
    direction *= SEPARATION / np.linalg.norm(direction)
    embedding = (embedding + label[:, None] * direction * embedding.std(axis=0)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Data(embedding[:rows], label[:rows], embedding[rows:], label[rows:])


# ---- beside the products alone ----


def our_fit(data: Data, fit: Fit, progress: Progress | None = None) -> Curve:
    """training.optimize as `training.fit` calls it."""
    hidden = hidden_layers(fit)
    head = head_from_layers(new_layers(hidden), initial_tensors(data.train, hidden, 1, fit.seed))
    train = Examples.from_arrays(data.train, data.train_label, "cpu")
    held_out = Examples.from_arrays(data.held_out, data.held_out_label, "cpu")
    return optimize_folds([Fold(head, train, held_out)], fit, "mse", progress)


def products_of_an_epoch(data: Data, fit: Fit) -> Callable[[], None]:
    """A function that does one epoch's matrix products and nothing else."""
    widths = [EMBED_DIM, *(layer.width for layer in hidden_layers(fit)), 1]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape)

    training, held_out = [], []
    for wide_in, wide_out in pairwise(widths):
        x, weight, slope = random(fit.batch_size, wide_in), random(wide_out, wide_in), random(fit.batch_size, wide_out)
        training += [(x, weight.T), (slope.T, x)]
        training += [(slope, weight)] if wide_in != widths[0] else []  # nothing needs the gradient of the embedding
        held_out.append((random(len(data.held_out), wide_in), weight.T))

    def multiply() -> None:
        for _ in range(len(data.train) // fit.batch_size):
            for left, right in training:
                torch.mm(left, right)
        for left, right in held_out:
            torch.mm(left, right)

    return multiply


def now() -> np.ndarray:
    """Processor time and wall time."""
    return np.array([time.process_time(), time.perf_counter()])


def beside_products(data: Data, fit: Fit, rounds: int) -> dict[str, float]:
    """Epochs of one fit in turns with their products; the first pair warms up."""
    multiply = products_of_an_epoch(data, fit)
    pairs, began = [], now()

    def pair(done: int, most: int, curve: Curve) -> None:
        nonlocal began
        trained = now()
        multiply()
        multiplied = now()
        pairs.append((trained - began, multiplied - trained))
        began = now()

    our_fit(data, fit.model_copy(update={"max_epochs": rounds + 1, "patience": rounds + 1}), pair)
    times = np.array(pairs[1:])  # (rounds, ours and the products, processor and wall)
    ratios = times[:, 0] / times[:, 1]
    return {
        "epoch_processor_s": float(np.median(times[:, 0, 0])),
        "products_processor_s": float(np.median(times[:, 1, 0])),
        "processor_ratio": float(np.median(ratios[:, 0])),
        "least": float(ratios[:, 0].min()),
        "most": float(ratios[:, 0].max()),
        "wall_ratio": float(np.median(ratios[:, 1])),
    }


# ---- beside a plain loop ----


def guide_loop(data: Data, epochs: int) -> tuple[list[float], list[float]]:
    """Processor seconds and held-out loss of each epoch; the held-out loss is not timed, the guide has none."""
    torch.manual_seed(_SEED)
    model, seconds, losses = _guide_model(), [], []
    labels = torch.from_numpy(data.train_label.astype(np.float32))[:, None]
    loader = DataLoader(TensorDataset(torch.from_numpy(data.train), labels), GUIDE_BATCH_SIZE, shuffle=True)
    optimizer, loss_of = torch.optim.Adam(model.parameters()), nn.MSELoss()
    for _ in range(epochs):
        model.train()
        began = time.process_time()
        _guide_epoch(model, loader, optimizer, loss_of)
        seconds.append(time.process_time() - began)
        model.eval()
        with torch.inference_mode():
            scores = model(torch.from_numpy(data.held_out))[:, 0].numpy()
        losses.append(float(np.square(scores - data.held_out_label).mean()))
    return seconds, losses


def _guide_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, loss_of: nn.Module) -> None:
    for rows, labels in loader:
        optimizer.zero_grad()
        loss = loss_of(model(rows), labels)
        loss.backward()
        optimizer.step()
        loss.item()


def _guide_model() -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise([EMBED_DIM, 1024, 2048, 1024, 256, 128]):
        layers += [nn.Linear(wide_in, wide_out), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(128, 16), nn.Linear(16, 1))


def beside_guide(data: Data, fit: Fit, seconds: list[float], losses: list[float]) -> dict[str, Any]:
    """How much processor time ours takes, with what comes before the first epoch, to the guide's best loss."""
    best, began, ours = int(np.argmin(losses)), time.process_time(), []
    curve = our_fit(data, fit, lambda *_: ours.append(time.process_time() - began))
    reached = next((epoch for epoch, loss in enumerate(curve.validation) if loss <= losses[best]), None)
    equal = None if reached is None else sum(seconds[: best + 1]) / ours[reached]
    return {
        "guide_epochs_to_best": best + 1,
        "guide_best_loss": losses[best],
        "guide_last_loss": losses[-1],
        "our_epochs_to_it": None if reached is None else reached + 1,
        "our_best_loss": min(curve.validation),
        "our_best_epoch": curve.best_epoch + 1,
        "speed_an_epoch": float(np.median(seconds)) * len(ours) / ours[-1],
        "speed_to_equal_loss": equal,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=20_000, help="to train on (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="pairs of an epoch and its products (default %(default)s)"
    )
    parser.add_argument("--guide-epochs", type=int, default=4, help="of the plain loop; 0: none (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of ours beside it (default %(default)s)")
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="of our products (default fp32)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: the machine's cores)")
    arguments, hardware = parser.parse_args(argv), machine()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data, fit = (
        synthetic(arguments.rows),
        Fit(architecture="laion-h14", loss="mse", max_epochs=arguments.epochs, patience=arguments.epochs),
    )
    result: dict[str, Any] = {"rows": arguments.rows, "threads": torch.get_num_threads(), "batch_size": fit.batch_size}
    fits = {name: fit.model_copy(update={"precision": name}) for name in arguments.precision}
    result["products"] = {name: beside_products(data, each, arguments.rounds) for name, each in fits.items()}
    rows = [
        Comparison(
            f"an epoch at {name} / its matrix products at fp32, processor time",
            figures["processor_ratio"],
            TARGET_PRODUCTS,
            False,
            "products",
        )
        for name, figures in result["products"].items()
    ]
    if arguments.guide_epochs:
        guide = guide_loop(data, arguments.guide_epochs)
        result["guide"] = {name: beside_guide(data, each, *guide) for name, each in fits.items()}
    result |= {"comparisons": comparisons_json(rows)}
    print(terminal_text({"benchmark": "head_speed"} | result))
    print_result("benchmarks.head_speed", hardware, **result)


if __name__ == "__main__":
    sys.exit(main())
