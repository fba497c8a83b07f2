"""Optimises heads on embeddings that lie in memory: chooses how long on held-out rows, then fits the final weights.

The time goes into the matrix products: batches are one gather each from tensors in memory, ReLU and dropout one pass
(`training.masks`), the update of the weights another, and nothing is read back from the device between the batches of
an epoch; `python -m benchmarks.head_speed` measures it. Where an epoch has many steps, what is measured and kept is the
mean of the weights over the latest of them, which is as good an epoch sooner. One linear layer is a convex problem,
which L-BFGS solves for one weight decay after another. torch.optim is left alone: its first step imports torch's
compiler, which takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import nn

from recipes.head_section import Fit, Loss
from training.errors import StepError
from training.head import StandardizeModule
from training.losses import Curve
from training.masks import with_masks
from training.order_losses import GaussianLoss, OrderLoss

WEIGHT_DECAYS = np.geomspace(10, 1e-5, 19)
"""Weight decays that lbfgs tries, the strongest first."""
PULLS = np.geomspace(1e3, 1e-5, 17)
"""Those towards the weights of texts: the strongest leaves them as they are. All are tried: where the texts are wrong,
many of them are as bad before the first is better."""

_WORK_FOR_THREADS = 50_000_000
"""Multiplications of a step from which on several threads are worth it."""
_STEPS_WITHOUT_GAIN = 3
_AVERAGED_STEPS = 40
"""The last steps of an epoch, whose weights are averaged; an epoch of fewer has its last weights."""
_AVERAGE_EVERY = 8
_ROWS_PER_BLOCK = 16_384
_DEFAULT_WEIGHT_DECAY = 1e-4

Progress = Callable[[int, int, Curve], None]
"""Called after each epoch with its number from 1, the most there can be, and the losses up to it."""


@dataclass(frozen=True)
class Examples:
    """Embeddings with their labels, on one device."""

    embedding: torch.Tensor  # (n, embed_dim) float32
    label: torch.Tensor  # (n, L) float32; for cross-entropy (n,) int64, the index of the class
    choices: torch.Tensor | None = None  # (m, 2) int64, rows of the better picture and the other: trained on instead

    @classmethod
    def from_arrays(
        cls,
        embedding: np.ndarray,
        label: np.ndarray,
        device: str,
        loss: Loss = "bce",
        choices: np.ndarray | None = None,
    ) -> Examples:
        """`embedding` (n, embed_dim); `label` (n,) or (n, L) values, for cross-entropy (n,) class indices."""
        if loss == "cross_entropy":
            labels = torch.from_numpy(label.astype(np.int64))
        else:
            labels = torch.from_numpy(label.astype(np.float32).reshape(len(label), -1))
        pairs = torch.from_numpy(choices).to(device) if choices is not None and len(choices) else None
        return cls(torch.from_numpy(np.ascontiguousarray(embedding)).to(device), labels.to(device), pairs)

    @property
    def steps_of(self) -> int:
        """What an epoch goes through once: rows, or choices."""
        return len(self.label) if self.choices is None else len(self.choices)


@dataclass(frozen=True)
class Fold:
    """A head with the rows that it is trained on and those that are held out from it."""

    head: nn.Module
    train: Examples
    validation: Examples


def optimize(head: nn.Module, train: Examples, validation: Examples, fit: Fit, loss: Loss = "bce") -> Curve:
    """`optimize_folds` of a single one."""
    return optimize_folds([Fold(head, train, validation)], fit, loss)


def optimize_folds(folds: list[Fold], fit: Fit, loss: Loss = "bce", progress: Progress | None = None) -> Curve:
    """Train the heads in place, side by side, until their mean held-out loss falls no more.

    Afterwards each holds its weights of the best epoch, the same for all, and is in eval mode. The products may be in
    bfloat16 (`fit.precision`) while the weights stay float32.

    Raises:
        StepError: the loss is no longer finite.
    """
    with _few_threads(folds[0].head, max(len(fold.train.label) for fold in folds), fit):
        return _optimize_folds(folds, fit, loss, progress)


def _optimize_folds(folds: list[Fold], fit: Fit, loss: Loss, progress: Progress | None) -> Curve:
    runs = [_new_run(fold.head, fold.train, fit, loss, fold.validation) for fold in folds]
    held_out = np.array([len(fold.validation.label) for fold in folds])
    strengths = weight_decays(fit)
    most, patience = fit.max_epochs, fit.patience
    if fit.optimizer == "lbfgs":
        most, patience = len(strengths), _STEPS_WITHOUT_GAIN if fit.start is None else len(strengths)
    curve = Curve()
    for epoch in range(most):
        curve.train.append(float(np.average([run.step(epoch) for run in runs], weights=held_out)))
        curve.validation.append(float(np.average([run.held_out_loss() for run in runs], weights=held_out)))
        if fit.optimizer == "lbfgs":
            curve.weight_decay.append(float(strengths[epoch]))
        _check_finite(curve, fit)
        if curve.best_epoch == epoch:
            for run in runs:
                run.keep()
        if progress is not None:
            progress(epoch + 1, most, curve)
        if epoch - curve.best_epoch >= patience:
            break
    for run in runs:
        run.finish()
    return curve


def fit_as_chosen(head: nn.Module, train: Examples, fit: Fit, loss: Loss, curve: Curve) -> None:
    """Train `head` in place as long as, or with the weight decay that, the curve found best; it ends in eval mode.

    Raises:
        StepError: the loss is no longer finite.
    """
    steps = [curve.best_epoch] if curve.weight_decay else range(curve.best_epoch + 1)
    with _few_threads(head, len(train.label), fit):
        run = _new_run(head, train, fit, loss)
        losses = [run.step(step) for step in steps]
    _check_finite(Curve(losses, losses), fit)
    run.keep()
    run.finish()


@contextmanager
def _few_threads(head: nn.Module, rows: int, fit: Fit) -> Iterator[None]:
    """Compute small steps on one thread: there, several wait for one another longer than they work.

    On a busy machine that is the time of another process at every operation. scipy's threads would only spin meanwhile.
    """
    weights = sum(parameter.numel() for parameter in head.parameters())
    work = weights * (rows if fit.optimizer == "lbfgs" else min(rows, fit.batch_size))
    before = torch.get_num_threads()
    with threadpool_limits(1, "blas"):
        torch.set_num_threads(1 if work < _WORK_FOR_THREADS else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def weight_decays(fit: Fit) -> np.ndarray:
    """Weight decays that lbfgs tries, the strongest first: the recipe's alone if it has one."""
    if fit.weight_decay is not None:
        return np.array([fit.weight_decay])
    return WEIGHT_DECAYS if fit.start is None else PULLS


class _Run:
    """One head in training; a step is an epoch."""

    def __init__(
        self, head: nn.Module, train: Examples, fit: Fit, loss: Loss, validation: Examples | None = None
    ) -> None:
        torch.manual_seed(fit.seed)
        parts = [train] if validation is None else [train, validation]
        standardized, self.trained = _standardized(head, *parts)
        self.trained = with_masks(self.trained, fit.seed)
        self.head, self.fit = head, fit
        self.train, self.validation = standardized[0], standardized[-1]
        self.loss_of = loss_function(loss, train, fit.class_weights)
        self.parameters = list(head.parameters())
        self.start = [tensor.detach().clone() for tensor in self.parameters]
        self.best = [tensor.clone() for tensor in self.start]
        self.shuffler = torch.Generator().manual_seed(fit.seed)
        self.update = AdamW(self.parameters, fit)
        self.average = Average(self.parameters, math.ceil(self.train.steps_of / fit.batch_size))

    def step(self, epoch: int) -> float:
        """Train for one epoch; returns the mean loss."""
        self.trained.train()
        device, fit = self.train.embedding.device, self.fit
        batches = torch.randperm(self.train.steps_of, generator=self.shuffler).to(device).split(fit.batch_size)
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches):
            loss = self._loss(batch)
            self.trained.zero_grad()
            loss.backward()
            self.update.step(learning_rate_at(epoch * len(batches) + number, len(batches), fit))
            self.average.step(number)
            total += loss.detach() * len(batch)
        return float(total) / self.train.steps_of

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        """The mean loss of some rows, or of some choices."""
        train = self.train
        rows = batch if train.choices is None else train.choices.index_select(0, batch).T.reshape(-1)
        with _mixed_precision(rows.device, self.fit):
            logits = self.trained(train.embedding.index_select(0, rows)).float()
        if train.choices is None:
            return self.loss_of(logits, train.label.index_select(0, rows))
        return self.loss_of.of_choices(*logits.split(len(batch)))  # type: ignore[operator]

    def held_out_loss(self) -> float:
        with self.average.in_place():
            return loss_in_eval_mode(self.trained, self.validation, self.loss_of)

    def keep(self) -> None:
        _copy(self.average.weights, self.best)

    def finish(self) -> None:
        """Put the kept weights back."""
        _copy(self.best, self.parameters)
        self.head.eval()


class _ExactRun(_Run):
    """One linear layer in training; a step is the solution for a weight decay, from that for the one before.

    The decay is towards the weights that the layer starts with: 0, or those of a head's texts, then with their bias.
    """

    def step(self, epoch: int) -> float:
        """Minimise loss + weight decay / 2 · |weight - start|² (of the standardised embedding, without bias from 0)."""
        strength = float(weight_decays(self.fit)[epoch])
        self.trained.train()
        losses = []
        pulled = [at for at, p in enumerate(self.parameters) if p.dim() > 1 or self.fit.start is not None]

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            _copy(_split(values, self.parameters), self.parameters)
            self.trained.zero_grad()
            loss = self._whole_loss()
            moved = (self.parameters[at] - self.start[at] for at in pulled)
            penalty = sum((change.square().sum() for change in moved), torch.zeros_like(loss))
            (loss + strength / 2 * penalty).backward()
            losses.append(float(loss.detach()))
            return losses[-1] + strength / 2 * float(penalty.detach()), _joined(p.grad for p in self.parameters)

        options = {"maxiter": self.fit.max_epochs, "ftol": 1e-8, "gtol": 1e-5}
        solution = minimize(objective, _joined(self.parameters), jac=True, method="L-BFGS-B", options=options)
        _copy(_split(solution.x, self.parameters), self.parameters)
        return loss_in_eval_mode(self.trained, self.train, self.loss_of)

    def _whole_loss(self) -> torch.Tensor:
        logits, choices = self.trained(self.train.embedding), self.train.choices
        if choices is None:
            return self.loss_of(logits, self.train.label)
        return self.loss_of.of_choices(logits[choices[:, 0]], logits[choices[:, 1]])  # type: ignore[operator]


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), or with `adam` as part of the gradient.

    It is torch's fused step, which reads and writes each weight and its two moments once.
    """

    def __init__(self, parameters: list[nn.Parameter], fit: Fit) -> None:
        self._decay = _DEFAULT_WEIGHT_DECAY if fit.weight_decay is None else fit.weight_decay
        self._update = torch.ops.aten._fused_adamw_ if fit.optimizer == "adamw" else torch.ops.aten._fused_adam_
        self._parameters = parameters
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = torch.zeros((), device=parameters[0].device)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients."""
        self._steps += 1
        gradients, steps = [parameter.grad for parameter in self._parameters], [self._steps] * len(self._parameters)
        self._update(
            self._parameters, gradients, self._means, self._squares, [], steps,
            lr=learning_rate, beta1=0.9, beta2=0.999, weight_decay=self._decay, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip


class Average:
    """The mean of the weights over the last steps of an epoch, without what the very last did to them by chance.

    With too few steps an epoch, or before the first, it is the weights themselves.
    """

    def __init__(self, parameters: list[nn.Parameter], steps_per_epoch: int) -> None:
        self._parameters, self._taken = parameters, 0
        self._steps = steps_per_epoch
        self._means = [p.detach().clone() for p in parameters] if steps_per_epoch >= _AVERAGED_STEPS else []

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        return self._means if self._taken else self._parameters

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Take in the weights after this step of an epoch, if it is one of the last: every eighth of them is enough."""
        left = self._steps - 1 - number
        if not self._means or left >= _AVERAGED_STEPS or left % _AVERAGE_EVERY:
            return
        self._taken = (_AVERAGED_STEPS - left) // _AVERAGE_EVERY
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter, 1 / self._taken)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have the mean for as long as they are measured."""
        if self.weights is self._parameters:
            yield
            return
        present = [parameter.detach().clone() for parameter in self._parameters]
        _copy(self._means, self._parameters)
        try:
            yield
        finally:
            _copy(present, self._parameters)


def loss_function(loss: Loss, train: Examples, class_weights: bool) -> nn.Module:
    """The loss on logits; its class weights come from the training data. The losses of grades know no classes."""
    if loss == "mse":
        return nn.MSELoss()
    if loss == "ab":
        return OrderLoss()
    if loss == "nll":
        return GaussianLoss()
    if loss == "cross_entropy":
        return nn.CrossEntropyLoss(weight=inverse_frequency(train.label) if class_weights else None)
    return nn.BCEWithLogitsLoss(pos_weight=positive_weight(train.label) if class_weights else None)


def positive_weight(labels: torch.Tensor) -> torch.Tensor:
    """(n, L) → (L,): negatives per positive, so that both classes weigh the same."""
    positives = labels.sum(dim=0)
    return (len(labels) - positives) / positives.clamp(min=1)


def inverse_frequency(labels: torch.Tensor) -> torch.Tensor:
    """(n,) class indices → (C,): weights under which every class counts the same, 1 on average over the rows."""
    counts = torch.bincount(labels).float()
    return len(labels) / (len(counts) * counts)


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
    with torch.inference_mode():
        logits = torch.cat([head(block) for block in examples.embedding.split(_ROWS_PER_BLOCK)])
        return float(loss_of(logits, examples.label))


def _new_run(head: nn.Module, train: Examples, fit: Fit, loss: Loss, validation: Examples | None = None) -> _Run:
    kind = _ExactRun if fit.optimizer == "lbfgs" else _Run
    return kind(head, train, fit, loss, validation)


def _standardized(head: nn.Module, *parts: Examples) -> tuple[list[Examples], nn.Module]:
    """The examples after the head's constant first layer, which need not run in every batch, and what remains."""
    if not isinstance(head, nn.Sequential) or not isinstance(head[0], StandardizeModule):
        return list(parts), head
    with torch.no_grad():
        standardized = [head[0](part.embedding) for part in parts]
    return [replace(part, embedding=x) for x, part in zip(standardized, parts, strict=True)], head[1:]


def _mixed_precision(device: torch.device, fit: Fit) -> torch.autocast:
    """bfloat16 has float32's range, so that no loss needs scaling."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = has_it if fit.precision is None else fit.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _joined(tensors: Iterable[torch.Tensor | None]) -> np.ndarray:
    """All values in one (P,) float64."""
    present = [tensor for tensor in tensors if tensor is not None]
    return np.concatenate([tensor.detach().double().cpu().numpy().ravel() for tensor in present])


def _split(values: np.ndarray, like: list[nn.Parameter]) -> Iterator[torch.Tensor]:
    """The inverse of `_joined`."""
    start = 0
    for tensor in like:
        part = values[start : start + tensor.numel()]
        yield torch.from_numpy(part).to(tensor).reshape(tensor.shape)
        start += tensor.numel()


def _copy(sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]) -> None:
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def _check_finite(curve: Curve, fit: Fit) -> None:
    if not np.isfinite([curve.train[-1], curve.validation[-1]]).all():
        raise StepError(
            f"epoch {len(curve.train) - 1}: the loss is {curve.train[-1]} in training and {curve.validation[-1]} in "
            f"validation; lower fit.learning_rate (now {fit.learning_rate})"
        )
