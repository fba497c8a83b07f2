"""Heads of graded pictures beside the best that there can be, on drawn embeddings whose true taste is known.

    python -m benchmarks.taste                          # about 15 minutes
    python -m benchmarks.taste --seeds 3 --trials 0     # without the search

Taste is one direction of the embedding and the bend of another; grades are taste and noise. Everything is drawn from
the seeds, and measured on the test split.

losses      Spearman and AB of each loss, of one linear layer and of one hidden layer, beside the ceiling: the true
taste
            itself against the same noisy grades
layers      four layers of which one informs: its learned weight, and Spearman beside that of all layers side by side
and
            of the informing one alone
choices     Spearman of Bradley and Terry's scores with the true order, at 1, 3 and 10 choices a picture that follow the
            model; and the seconds for 100,000 choices between 10,000 pictures
drawing     pairs that the ab loss draws and weighs in a second, beside the same loss on pairs drawn in a loop
search      the head of the recipe's own settings and the one that training.search finds, of 5,000 pictures × 768

Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.comparison import rounded
from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from common.manifest import EncoderFingerprint
from recipes.head_section import Head, Search
from recipes.schema import load_recipe
from training.bradley_terry import bradley_terry
from training.fit_inputs import FitInputs
from training.grades import order_of
from training.head_fit import Fitted, fit_head
from training.labelled import Labelled
from training.leakage import Groups, group_rows
from training.search import search_settings
from training.sources import HeadData
from training.split import Split, split_rows
from training.store_view import Pictures

ROWS, DIM, NOISE = 2000, 128, 0.7
LAYERS = 4
CHOICES = (1, 3, 10)
MANY_CHOICES, MANY_PICTURES = 100_000, 10_000
SEARCHED_ROWS, SEARCHED_DIM = 5000, 768
_MEAN, _SPREAD = 1250.0, 80.0
_HEADS: dict[str, dict[str, Any]] = {"linear": {}, "hidden layer": {"hidden_sizes": [64]}}


@dataclass(frozen=True)
class Graded:
    """Drawn pictures with their grades, the taste behind them, and their split."""

    data: Labelled
    taste: np.ndarray  # (n,) in units of the grades
    split: Split

    @property
    def ceiling(self) -> dict[str, float]:
        """Spearman and AB of the true taste with the test part's grades."""
        rows = self.split.test
        return figures(self.data.label[rows], self.taste[rows])

    def fitted(self, layer_widths: tuple[int, ...], **fit: Any) -> Fitted:
        head = Head.model_validate({**HEAD, "fit": {"seed": 0, **fit}})
        groups = np.arange(len(self.data.label))
        return fit_head(self.data, head, "cpu", self.split, groups, layer_widths=layer_widths)

    def measured(self, fitted: Fitted) -> dict[str, float]:
        """Spearman and AB of a head on the test part."""
        return figures(self.data.label[self.split.test], fitted.scores.test_scores[:, 0])


HEAD = {"name": "taste", "task": "regression", "class_names": ["taste"]}


def figures(grades: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman and AB."""
    return {"spearman": float(spearmanr(grades, scores).statistic), "ab": float(order_of(grades, scores).ab or 0)}  # type: ignore[attr-defined]


def drawn(seed: int, rows: int = ROWS, dim: int = DIM) -> Graded:
    """Draw pictures: embeddings of length 1 with a few strong directions, as real ones have."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(rows, 32)) @ rng.normal(size=(32, dim)) + 0.5 * rng.normal(size=(rows, dim))
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    straight, bent = (standard(embedding @ rng.normal(size=dim)) for _ in range(2))
    taste = standard(straight + np.maximum(bent, 0))
    return graded(embedding, taste, rng)


def graded(embedding: np.ndarray, taste: np.ndarray, rng: np.random.Generator) -> Graded:
    """Give pictures of a known taste their noisy grades."""
    grades = _MEAN + _SPREAD * (taste + NOISE * rng.normal(size=len(taste)))
    contents = [f"{row:064x}" for row in range(len(taste))]
    data = Labelled(embedding, grades, contents, np.arange(len(taste)))
    return Graded(data, _MEAN + _SPREAD * taste, split_rows(None, contents, ["taste"], 0.2, 0.15, 0))


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def losses(seeds: int) -> list[dict[str, Any]]:
    """A row for the ceiling and for each head and loss: mean over the seeds."""
    kinds: dict[str, Callable[[Graded], dict[str, float]]] = {"ceiling": lambda graded: graded.ceiling}
    for name, settings in _HEADS.items():
        for loss in ("mse", "ab", "nll"):
            kinds[f"{loss}, {name}"] = partial(_figures_of_head, fit={**settings, "loss": loss})
    return [{"head": name} | _mean([kind(drawn(seed)) for seed in range(seeds)]) for name, kind in kinds.items()]


def _figures_of_head(graded: Graded, fit: dict[str, Any]) -> dict[str, float]:
    return graded.measured(graded.fitted((), **fit))


def layers(seeds: int) -> list[dict[str, Any]]:
    """The learned weight of the informing layer at each place, and what merging costs or gains."""
    rows = []
    for place in range(LAYERS):
        merged, side_by_side, alone, weights = [], [], [], []
        for seed in range(seeds):
            one = drawn(seed)
            rng = np.random.default_rng(100 + seed)
            parts = [rng.normal(size=(ROWS, DIM)) / np.sqrt(DIM) for _ in range(LAYERS)]
            parts[place] = one.data.embedding
            data = Labelled(
                np.concatenate(parts, axis=1).astype(np.float32), one.data.label, one.data.sha256, one.data.row
            )
            several = Graded(data, one.taste, one.split)
            settings = {"hidden_sizes": [64], "learning_rate": 3e-3}
            fitted = several.fitted((DIM,) * LAYERS, merge_layers="weighted", **settings)
            weights.append((fitted.layer_weights or [])[place])
            merged.append(several.measured(fitted)["spearman"])
            side_by_side.append(several.measured(several.fitted((), **settings))["spearman"])
            alone.append(one.measured(one.fitted((), **settings))["spearman"])
        means = {"weight": weights, "weighted": merged, "concatenated": side_by_side, "that layer alone": alone}
        rows.append({"informing layer": place} | {name: float(np.mean(values)) for name, values in means.items()})
    return rows


def choices(seeds: int) -> list[dict[str, Any]]:
    """Spearman of the scores with the true order, by choices a picture."""
    rows = []
    for each in CHOICES:
        agreement = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            taste = rng.normal(size=ROWS) * 2
            scores = bradley_terry(chosen(taste, each * ROWS // 2, rng), ROWS)
            agreement.append({"spearman": figures(taste, scores)["spearman"], "ab": figures(taste, scores)["ab"]})
        rows.append({"choices a picture": each} | _mean(agreement))
    return rows


def chosen(taste: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2) choices between random pictures, won as the model says; a picture is in 2 · count / n of them."""
    first = rng.integers(0, len(taste), count)
    second = (first + rng.integers(1, len(taste), count)) % len(taste)
    wins = rng.random(count) < 1 / (1 + np.exp(taste[second] - taste[first]))
    return np.where(wins[:, None], np.stack([first, second], axis=1), np.stack([second, first], axis=1))


def seconds_of_many_choices() -> float:
    rng = np.random.default_rng(0)
    pairs = chosen(rng.normal(size=MANY_PICTURES) * 2, MANY_CHOICES, rng)
    started = time.perf_counter()
    bradley_terry(pairs, MANY_PICTURES)
    return time.perf_counter() - started


def drawing(rounds: int = 25, batch: int = 256) -> dict[str, float]:
    """Pairs a second of the loss, forward and backward, and of one that draws as many in a loop in Python; medians."""
    import torch

    from training.order_losses import MARGIN, OrderLoss, partners, rounded_hinge

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as training does at this size
    grades = torch.randn(batch, 1, generator=torch.Generator().manual_seed(0))
    count = len(partners(batch)[0])

    def by_loop(values: torch.Tensor) -> torch.Tensor:
        draw = random.Random(0)
        drawn_pairs = [draw.sample(range(batch), 2) for _ in range(count)]
        first, second = torch.tensor(drawn_pairs).T
        difference = grades[first, 0] - grades[second, 0]
        lead = (values[first, 0] - values[second, 0]) * difference.sign()
        return rounded_hinge(difference.abs().clamp(max=MARGIN) - lead).mean()

    def seconds(loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        values = torch.zeros(batch, 1, requires_grad=True)
        started = time.perf_counter()
        loss(values).backward()
        return time.perf_counter() - started

    speeds = {
        "pairs_per_s": count / float(np.median([seconds(lambda x: OrderLoss()(x, grades)) for _ in range(rounds)])),
        "loop_pairs_per_s": count / float(np.median([seconds(by_loop) for _ in range(rounds)])),
    }
    torch.set_num_threads(threads)
    return speeds | {"times_as_fast": speeds["pairs_per_s"] / speeds["loop_pairs_per_s"]}


def searched(trials: int) -> dict[str, Any]:
    """The head of the default settings beside the one of the search, both fitted as every head is."""
    many = drawn(7, SEARCHED_ROWS, SEARCHED_DIM)
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(many, Path(folder))
        started = time.perf_counter()
        fit, sentence = search_settings(inputs, Search(trials=trials), Path(folder) / "study.db")
        took = time.perf_counter() - started
    print(sentence, file=sys.stderr)
    own, best = many.measured(many.fitted(())), many.measured(many.fitted((), **fit.model_dump(exclude_unset=True)))
    return {
        "trials": trials,
        "search_s": took,
        "ceiling": many.ceiling["spearman"],
        "default": own["spearman"],
        "found": best["spearman"],
        "settings": {"hidden_sizes": fit.hidden_sizes, "loss": fit.loss, "batch_size": fit.batch_size},
    }


def _inputs(graded: Graded, folder: Path) -> FitInputs:
    """Make what a search reads from a store, without one."""
    count, data = len(graded.data.label), graded.data
    fingerprint = EncoderFingerprint(
        id="drawn", weights_sha256="0" * 64, preprocessing="none", normalize=True, embed_dim=data.embedding.shape[1]
    )
    names = [str(row) for row in range(count)]
    nothing: list[str | None] = [None] * count
    pictures = Pictures(
        names, names, data.sha256, nothing, nothing, [()] * count, nothing, {}, [False] * count,
        np.ones(count, int), np.zeros((0, 2), int),
    )  # fmt: skip
    groups: Groups = group_rows(data.sha256, data.embedding, None)
    head = Head.model_validate(HEAD)
    head_data = HeadData(folder, "demo", "taste")
    return FitInputs(load_recipe("demo"), head, fingerprint, [], head_data, pictures, data, groups, graded.split)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="drawn sets that are averaged")
    parser.add_argument("--trials", type=int, default=100, help="of the search; 0 leaves it out")
    arguments = parser.parse_args(argv)
    hardware = machine()
    tables = {"losses": losses(arguments.seeds), "layers": layers(arguments.seeds), "choices": choices(arguments.seeds)}
    for rows in tables.values():
        print_table([rounded(row) for row in rows])
        print()
    single = {"choices_100000_s": seconds_of_many_choices(), **drawing()}
    search = searched(arguments.trials) if arguments.trials else None
    print_table([rounded(single)])
    if search is not None:
        print_table([rounded(search)])
    print_result("benchmarks.taste", hardware, **rounded({**tables, **single, "search": search}))


if __name__ == "__main__":
    main()
