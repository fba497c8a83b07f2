"""Optimises a head on embeddings that lie in memory, and keeps its best epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from recipes.schema import Fit
from training.errors import StepError


@dataclass(frozen=True)
class Examples:
    """Embeddings with their labels, on one device."""

    embedding: torch.Tensor  # (n, embed_dim) float32
    label: torch.Tensor  # (n, L) float32, 0 or 1

    @classmethod
    def from_arrays(cls, embedding: np.ndarray, label: np.ndarray, device: str) -> Examples:
        """`embedding` (n, embed_dim), `label` (n,) 0 or 1."""
        labels = torch.from_numpy(label.astype(np.float32))[:, None]
        return cls(torch.from_numpy(embedding).to(device), labels.to(device))


@dataclass
class Curve:
    """Mean loss per epoch; the epoch numbered 0 is the first."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        return int(np.argmin(self.validation))


def optimize(head: nn.Module, train: Examples, validation: Examples, fit: Fit) -> Curve:
    """Train `head` in place until `fit.patience` epochs bring no better validation loss.

    Afterwards the head holds the weights of the best epoch and is in eval mode.

    Raises:
        StepError: the loss is no longer finite.
    """
    torch.manual_seed(fit.seed)
    shuffler = torch.Generator().manual_seed(fit.seed)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=positive_weight(train.label))
    optimizer = torch.optim.AdamW(head.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    curve = Curve()
    best = copy.deepcopy(head.state_dict())
    for epoch in range(fit.max_epochs):
        curve.train.append(_train_one_epoch(head, train, fit.batch_size, loss_of, optimizer, shuffler))
        curve.validation.append(_loss_in_eval_mode(head, validation, loss_of))
        _check_finite(curve, fit)
        if curve.best_epoch == epoch:
            best = copy.deepcopy(head.state_dict())
        if epoch - curve.best_epoch >= fit.patience:
            break
    head.load_state_dict(best)
    head.eval()
    return curve


def positive_weight(labels: torch.Tensor) -> torch.Tensor:
    """(n, L) → (L,): negatives per positive, so that both classes weigh the same."""
    positives = labels.sum(dim=0)
    return (len(labels) - positives) / positives


def _train_one_epoch(
    head: nn.Module,
    train: Examples,
    batch_size: int,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    shuffler: torch.Generator,
) -> float:
    head.train()
    total = torch.zeros((), device=train.label.device)
    for rows in _batches(len(train.label), batch_size, shuffler):
        rows = rows.to(train.label.device)
        loss = loss_of(head(train.embedding[rows]), train.label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return float(total) / len(train.label)


def _batches(count: int, batch_size: int, shuffler: torch.Generator) -> Iterator[torch.Tensor]:
    yield from torch.randperm(count, generator=shuffler).split(batch_size)


def _loss_in_eval_mode(head: nn.Module, examples: Examples, loss_of: nn.Module) -> float:
    head.eval()
    with torch.inference_mode():
        return float(loss_of(head(examples.embedding), examples.label))


def _check_finite(curve: Curve, fit: Fit) -> None:
    if not np.isfinite([curve.train[-1], curve.validation[-1]]).all():
        raise StepError(
            f"epoch {len(curve.train) - 1}: the loss is {curve.train[-1]} in training and {curve.validation[-1]} in "
            f"validation; lower fit.learning_rate (now {fit.learning_rate})"
        )
