"""How fast a head is fitted: the guide's loop and scikit-learn beside training.optimize, in one run.

    python -m benchmarks.fit_head                               # 100k rows of 768, the guide for 10 epochs
    python -m benchmarks.fit_head --rows 20000 --guide-epochs 2

First the guide's loop as it is printed (TensorDataset, DataLoader of 32, Adam, MSE, the H14 layers) and ours on the
same rows, layers and loss, until its validation loss is at or below the guide's best; beside both the floor, which
is the time of the matrix products alone of as many epochs, at our batch size. Then one linear layer against
scikit-learn's LogisticRegression. A table goes to stderr, one line of JSON to stdout.

With --guide-steps N only N steps of each epoch of the guide are run: their time is scaled up to the whole epoch, and
the output says so; the loss to reach is then that of the shortened epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.machine import machine, print_result
from recipes.schema import Fit
from training.head import head_from_layers, hidden_layers, initial_tensors, logits_of, new_layers
from training.losses import Curve
from training.optimize import Examples, optimize

GUIDE_BATCH_SIZE = 32
OUR_MLP = Fit(
    architecture="laion-h14",
    loss="mse",
    learning_rate=5e-4,
    weight_decay=1e-2,
    batch_size=128,
    schedule="cosine",
    patience=2,
)
OUR_LINEAR = Fit(learning_rate=1e-2, weight_decay=1e-2, batch_size=2048, max_epochs=4, patience=2, schedule="cosine")

console = Console(stderr=True)


@dataclass(frozen=True)
class Data:
    """Two classes on the unit sphere; a tenth of the rows is for validation."""

    train: np.ndarray  # (n, D) float32
    train_label: np.ndarray  # (n,) 0 or 1
    validation: np.ndarray
    validation_label: np.ndarray


@dataclass(frozen=True)
class GuideRun:
    seconds: float
    curve: Curve
    scaled: bool


def synthetic(rows: int, embed_dim: int, separation: float, seed: int) -> Data:
    """Gaussians `separation` standard deviations apart, some columns with more spread than others, normalised."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    embedding = rng.standard_normal((rows, embed_dim), dtype=np.float32) * rng.uniform(0.3, 3, embed_dim)
    direction = rng.standard_normal(embed_dim)
    direction *= separation / np.linalg.norm(direction)
    embedding = (embedding + label[:, None] * direction * embedding.std(axis=0)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    held = rows // 10
    return Data(embedding[held:], label[held:], embedding[:held], label[:held])


def guide_loop(data: Data, epochs: int, steps: int | None) -> GuideRun:
    """The guide's training: an MLP with ReLU and dropout on L2-normalised rows, MSE against 0 and 1.

    Its validation is timed apart, because the guide prints none until the end.
    """
    torch.manual_seed(0)
    model = _guide_model(data.train.shape[1])
    dataset = TensorDataset(
        torch.from_numpy(data.train), torch.from_numpy(data.train_label.astype(np.float32))[:, None]
    )
    loader = DataLoader(dataset, batch_size=GUIDE_BATCH_SIZE, shuffle=True)
    optimizer, loss_of = torch.optim.Adam(model.parameters()), nn.MSELoss()
    seconds, curve = 0.0, Curve()
    for epoch in range(epochs):
        started, total, done = time.perf_counter(), 0.0, 0
        model.train()
        for rows, labels in islice(loader, steps):
            optimizer.zero_grad()
            loss = loss_of(model(rows), labels)
            loss.backward()
            optimizer.step()
            total, done = total + loss.item(), done + 1
        seconds += (time.perf_counter() - started) * len(loader) / done
        curve.train.append(total / done)
        curve.validation.append(_validation_loss(model, data))
        console.print(f"guide, epoch {epoch}: {seconds:.0f} s, validation MSE {curve.validation[-1]:.5f}")
    return GuideRun(seconds, curve, steps is not None and steps < len(loader))


def our_loop(data: Data, fit: Fit, loss: str) -> tuple[float, Curve, nn.Sequential]:
    """training.optimize, with all that comes before and its validation in every epoch."""
    started = time.perf_counter()
    hidden = hidden_layers(fit)
    module = head_from_layers(new_layers(hidden), initial_tensors(data.train, hidden, 1, fit.seed))
    train = Examples.from_arrays(data.train, data.train_label, "cpu")
    validation = Examples.from_arrays(data.validation, data.validation_label, "cpu")
    curve = optimize(module, train, validation, fit, loss)  # type: ignore[arg-type]
    return time.perf_counter() - started, curve, module


def floor_seconds(rows: int, widths: list[int], batch_size: int) -> float:
    """One epoch's matrix products alone: per layer the output, and the gradients of weight and input."""
    products = []
    for wide_in, wide_out in pairwise(widths):
        x, weight, slope = (
            torch.randn(shape) for shape in ((batch_size, wide_in), (wide_out, wide_in), (batch_size, wide_out))
        )
        products += [(x, weight.T), (slope.T, x)]
        if wide_in != widths[0]:  # nothing needs the gradient of the embedding
            products.append((slope, weight))
    outputs = [left @ right for left, right in products]
    repeats = max(1, min(10, rows // batch_size))
    started = time.perf_counter()
    for _ in range(repeats):
        for (left, right), output in zip(products, outputs, strict=True):
            torch.mm(left, right, out=output)
    return (time.perf_counter() - started) / repeats * rows / batch_size


def compare_mlp(data: Data, arguments: argparse.Namespace) -> dict[str, Any]:
    guide = guide_loop(data, arguments.guide_epochs, arguments.guide_steps)
    fit = OUR_MLP.model_copy(update={"max_epochs": arguments.our_epochs})
    seconds, curve, _ = our_loop(data, fit, "mse")
    widths = [data.train.shape[1], *(layer.width for layer in hidden_layers(fit)), 1]
    floor = floor_seconds(len(data.train), widths, fit.batch_size)
    return {
        "guide_seconds": guide.seconds,
        "guide_scaled_up": guide.scaled,
        "guide_epochs": arguments.guide_epochs,
        "guide_best_validation_mse": min(guide.curve.validation),
        "guide_last_validation_mse": guide.curve.validation[-1],
        "guide_floor_seconds": floor * arguments.guide_epochs,
        "our_seconds": seconds,
        "our_epochs": len(curve.validation),
        "our_validation_mse": min(curve.validation),
        "our_floor_seconds": floor * len(curve.validation),
        "speedup": guide.seconds / seconds,
        "speedup_per_epoch": guide.seconds / arguments.guide_epochs / (seconds / len(curve.validation)),
        "reached": min(curve.validation) <= min(guide.curve.validation),
    }


def compare_linear(data: Data) -> dict[str, Any]:
    started = time.perf_counter()
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data.train, data.train_label)
    seconds = time.perf_counter() - started
    ours, curve, module = our_loop(data, OUR_LINEAR, "bce")
    return {
        "sklearn_seconds": seconds,
        "sklearn_auroc": float(roc_auc_score(data.validation_label, regression.decision_function(data.validation))),
        "our_seconds": ours,
        "our_epochs": len(curve.validation),
        "our_auroc": float(roc_auc_score(data.validation_label, logits_of(module, data.validation)[:, 0])),
        "speedup": seconds / ours,
    }


def warm_up() -> None:
    """What either side imports and sets up once per process is not what is compared."""
    small = synthetic(256, 8, 1.0, seed=1)
    our_loop(small, Fit(max_epochs=1), "bce")
    LogisticRegression().fit(small.train, small.train_label)


def show(found: dict[str, Any]) -> None:
    mlp, linear = found["mlp"], found["linear"]
    table = Table(title=f"{found['rows']:,} rows of {found['embed_dim']}, {found['threads']} threads")
    for column in ("fit", "epochs", "seconds", "matrix products alone", "on held-out rows"):
        table.add_column(column)
    note = " (scaled up from a part)" if mlp["guide_scaled_up"] else ""
    table.add_row(
        "guide's loop",
        str(mlp["guide_epochs"]),
        f"{mlp['guide_seconds']:.1f}{note}",
        f"{mlp['guide_floor_seconds']:.1f}",
        f"MSE {mlp['guide_best_validation_mse']:.5f} at best, {mlp['guide_last_validation_mse']:.5f} at the end",
    )
    table.add_row(
        f"training.optimize, {mlp['speedup']:.1f} times as fast",
        str(mlp["our_epochs"]),
        f"{mlp['our_seconds']:.1f}",
        f"{mlp['our_floor_seconds']:.1f}",
        f"MSE {mlp['our_validation_mse']:.5f}",
    )
    table.add_row(
        "LogisticRegression", "", f"{linear['sklearn_seconds']:.2f}", "", f"AUROC {linear['sklearn_auroc']:.4f}"
    )
    table.add_row(
        f"training.optimize, linear, {linear['speedup']:.1f} times as fast",
        str(linear["our_epochs"]),
        f"{linear['our_seconds']:.2f}",
        "",
        f"AUROC {linear['our_auroc']:.4f}",
    )
    console.print(table)
    bayes = found["bayes_auroc"]
    console.print(f"AUROC of the best direction, were the rows not normalised: {bayes:.4f}")


def _guide_model(embed_dim: int) -> nn.Sequential:
    widths, layers = [embed_dim, 1024, 2048, 1024, 256, 128], []
    for wide_in, wide_out in pairwise(widths):
        layers += [nn.Linear(wide_in, wide_out), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(128, 16), nn.Linear(16, 1))


def _validation_loss(model: nn.Module, data: Data) -> float:
    model.eval()
    with torch.inference_mode():
        found = model(torch.from_numpy(data.validation))[:, 0].numpy()
    return float(np.mean(np.square(found - data.validation_label)))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fit_head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="for training; a ninth as many are held out")
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--separation", type=float, default=3.0, help="of the classes, in standard deviations")
    parser.add_argument("--guide-epochs", type=int, default=10)
    parser.add_argument("--guide-steps", type=int, help="of each epoch; by default all")
    parser.add_argument("--our-epochs", type=int, default=3, help="at most")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments, told = _arguments(argv), machine()
    warm_up()
    data = synthetic(arguments.rows * 10 // 9, arguments.embed_dim, arguments.separation, seed=0)
    found = {
        "rows": len(data.train),
        "embed_dim": arguments.embed_dim,
        "threads": torch.get_num_threads(),
        "bayes_auroc": float(norm.cdf(arguments.separation / np.sqrt(2))),
        "linear": compare_linear(data),
        "mlp": compare_mlp(data, arguments),
    }
    show(found)
    print_result("benchmarks.fit_head", told, **found)


if __name__ == "__main__":
    sys.exit(main())
