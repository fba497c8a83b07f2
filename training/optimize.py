"""Optimises a head on embeddings that lie in memory, and keeps its best epoch.

The time goes into the matrix products: batches are one gather each from tensors in memory, the optimiser's update
is one fused kernel, and nothing is read back from the device between the batches of an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recipes.schema import Fit
from training.errors import StepError
from training.head import StandardizeModule
from training.losses import Curve, Loss

_ROWS_PER_BLOCK = 16_384


@dataclass(frozen=True)
class Examples:
    """Embeddings with their labels, on one device."""

    embedding: torch.Tensor  # (n, embed_dim) float32
    label: torch.Tensor  # (n, L) float32; for cross-entropy (n,) int64, the index of the class

    @classmethod
    def from_arrays(cls, embedding: np.ndarray, label: np.ndarray, device: str, loss: Loss = "bce") -> Examples:
        """`embedding` (n, embed_dim); `label` (n,) or (n, L) values, for cross-entropy (n,) class indices."""
        if loss == "cross_entropy":
            labels = torch.from_numpy(label.astype(np.int64))
        else:
            labels = torch.from_numpy(label.astype(np.float32).reshape(len(label), -1))
        return cls(torch.from_numpy(np.ascontiguousarray(embedding)).to(device), labels.to(device))


def optimize(head: nn.Module, train: Examples, validation: Examples, fit: Fit, loss: Loss = "bce") -> Curve:
    """Train `head` in place until `fit.patience` epochs bring no better validation loss.

    Afterwards the head holds the weights of the best epoch and is in eval mode. On a GPU that computes in bfloat16
    the products are in bfloat16 while the weights stay float32.

    Raises:
        StepError: the loss is no longer finite.
    """
    torch.manual_seed(fit.seed)
    (train, validation), trained = _standardized(head, train, validation)
    shuffler = torch.Generator().manual_seed(fit.seed)
    loss_of = loss_function(loss, train, fit.class_weights)
    optimizer = new_optimizer(head, fit)
    curve = Curve()
    best = [tensor.detach().clone() for tensor in head.parameters()]
    for epoch in range(fit.max_epochs):
        curve.train.append(_train_one_epoch(trained, train, fit, epoch, loss_of, optimizer, shuffler))
        curve.validation.append(loss_in_eval_mode(trained, validation, loss_of))
        _check_finite(curve, fit)
        if curve.best_epoch == epoch:
            _copy(head.parameters(), best)
        if epoch - curve.best_epoch >= fit.patience:
            break
    _copy(best, head.parameters())
    head.eval()
    return curve


def _standardized(head: nn.Module, *parts: Examples) -> tuple[list[Examples], nn.Module]:
    """The examples after the head's constant first layer, which need not run in every batch, and what remains."""
    if not isinstance(head, nn.Sequential) or not isinstance(head[0], StandardizeModule):
        return list(parts), head
    with torch.no_grad():
        standardized = [head[0](part.embedding) for part in parts]
    return [Examples(x, part.label) for x, part in zip(standardized, parts, strict=True)], head[1:]


def loss_function(loss: Loss, train: Examples, class_weights: bool) -> nn.Module:
    """The loss on logits; its class weights come from the training data. Mean squared error knows no classes."""
    if loss == "mse":
        return nn.MSELoss()
    if loss == "cross_entropy":
        return nn.CrossEntropyLoss(weight=inverse_frequency(train.label) if class_weights else None)
    return nn.BCEWithLogitsLoss(pos_weight=positive_weight(train.label) if class_weights else None)


def positive_weight(labels: torch.Tensor) -> torch.Tensor:
    """(n, L) → (L,): negatives per positive, so that both classes weigh the same."""
    positives = labels.sum(dim=0)
    return (len(labels) - positives) / positives


def inverse_frequency(labels: torch.Tensor) -> torch.Tensor:
    """(n,) class indices → (C,): weights under which every class counts the same, 1 on average over the rows."""
    counts = torch.bincount(labels).float()
    return len(labels) / (len(counts) * counts)


def new_optimizer(head: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    return kind(head.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay, fused=True)


def learning_rate_at(step: int, steps_per_epoch: int, fit: Fit) -> float:
    """Linear from near 0 to the full rate while it warms up, then constant or half a cosine down to 0."""
    warmup, total = fit.warmup_epochs * steps_per_epoch, fit.max_epochs * steps_per_epoch
    if step < warmup:
        return fit.learning_rate * (step + 1) / warmup
    if fit.schedule == "constant":
        return fit.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    return fit.learning_rate * (1 + math.cos(math.pi * done)) / 2


def loss_in_eval_mode(head: nn.Module, examples: Examples, loss_of: nn.Module) -> float:
    head.eval()
    with torch.inference_mode(), _mixed_precision(examples.embedding.device):
        logits = torch.cat([head(block) for block in examples.embedding.split(_ROWS_PER_BLOCK)])
        return float(loss_of(logits.float(), examples.label))


def _train_one_epoch(
    head: nn.Module,
    train: Examples,
    fit: Fit,
    epoch: int,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    shuffler: torch.Generator,
) -> float:
    head.train()
    device = train.embedding.device
    batches = torch.randperm(len(train.embedding), generator=shuffler).to(device).split(fit.batch_size)
    total = torch.zeros((), device=device)
    for number, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch * len(batches) + number, len(batches), fit)
        with _mixed_precision(device):
            logits = head(train.embedding.index_select(0, rows))
        loss = loss_of(logits.float(), train.label.index_select(0, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return float(total) / len(train.embedding)


def _mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 has float32's range, so that no loss needs scaling."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _copy(sources, targets) -> None:
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def _check_finite(curve: Curve, fit: Fit) -> None:
    if not np.isfinite([curve.train[-1], curve.validation[-1]]).all():
        raise StepError(
            f"epoch {len(curve.train) - 1}: the loss is {curve.train[-1]} in training and {curve.validation[-1]} in "
            f"validation; lower fit.learning_rate (now {fit.learning_rate})"
        )
