"""One trial of a search: a head trained on the training part, in memory, and measured on a set of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import rankdata

from recipes.head_section import Fit, Head, SearchMetric, SearchSet
from training.errors import StepError
from training.grades import correlation, divider_of, order_of
from training.head import logits_of
from training.head_fit import merged_layers, plan_of
from training.labelled import Labelled
from training.losses import Curve
from training.metrics import auroc, average_precision, counts_of
from training.optimize import Fold, optimize_folds
from training.split import Split
from training.trainable import Trainables
from training.units import units_of

SMALLER_IS_BETTER = ("mse", "mae")
METRICS: dict[str, tuple[SearchMetric, ...]] = {
    "binary": ("auroc", "average_precision", "accuracy"),
    "regression": ("spearman", "ab", "pearson", "mse", "mae", "accuracy"),
    "ranking": ("spearman", "ab", "pearson", "mse", "mae", "accuracy"),
}
"""Figures that a search of each task can be scored by, the default first."""

Report = Callable[[int, float], None]
"""Called after every epoch with its number, from 0, and the figure; may raise to end the trial."""


class Trials:
    """Trains and measures heads of one recipe with one setting after another."""

    def __init__(
        self,
        data: Labelled,
        head: Head,
        split: Split,
        device: str,
        metric: SearchMetric,
        rows: SearchSet,
        layer_widths: Sequence[int] = (),
    ) -> None:
        """
        Args:
            data: all labelled rows.
            head: of the recipe.
            split: whose training part is trained on, and whose validation part ends a training.
            device: torch's name of it.
            metric: the figure.
            rows: the set it is measured on.
            layer_widths: of the encoder.
        """
        self._data, self._head, self._split, self._device = data, head, split, device
        self._merged = merged_layers(head, layer_widths, data.embedding.shape[1])
        self._metric: SearchMetric = metric
        parts = {"evaluation": split.test, "all": np.arange(len(data.label)), **split.parts()}
        self._rows = parts[rows]
        fitting = np.concatenate([split.train, split.validation])
        self._divider = divider_of(head.accuracy_divider, data.label[fitting]) if head.is_graded else None
        if head.is_graded and self._divider is None and metric == "accuracy":
            raise StepError(f"head {head.name}: accuracy takes an accuracy_divider, found none in the recipe")

    def value(self, fit: Fit, report: Report | None = None) -> float:
        """Train a head and return its figure.

        Raises:
            StepError: the loss is no longer finite, or the rows have no figure.
        """
        head = self._head.model_copy(update={"fit": fit})
        plan = plan_of(head)
        made = Trainables(self._data, head, plan.loss, self._split.train, self._device, self._merged)
        module = made.head(self._split.train)

        def measure() -> float:
            outputs = logits_of(module, self._data.embedding[self._rows])
            if head.is_graded and self._metric in ("mse", "mae", "accuracy"):
                held_out = self._split.validation
                known = logits_of(module, self._data.embedding[held_out])
                units = units_of(plan.loss, head, known, self._data.label[held_out], made.mean, made.std)
                outputs = units.of(outputs)
            return figure(self._metric, self._data.label[self._rows], outputs[:, 0], self._divider)

        def after_epoch(done: int, _most: int, _curve: Curve) -> None:
            if report is not None:
                report(done - 1, measure())

        fold = Fold(module, made.examples(self._split.train), made.examples(self._split.validation))
        with _one_thread():
            optimize_folds([fold], fit, plan.loss, after_epoch)
            return measure()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on steps of a trial's size several wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def figure(metric: SearchMetric, labels: np.ndarray, scores: np.ndarray, divider: float | None) -> float:
    """One figure of (n,) scores of grades, which the divider makes good or bad; without one, of logits of two classes.

    Raises:
        StepError: there is none, because all labels or all scores are equal.
    """
    value = _figure(metric, labels, scores, divider)
    if value is None or not np.isfinite(value):
        raise StepError(f"no {metric} of {len(labels)} pictures: their labels, or their scores, are all equal")
    return float(value)


def _figure(metric: SearchMetric, labels: np.ndarray, scores: np.ndarray, divider: float | None) -> float | None:
    if metric in ("auroc", "average_precision"):
        if labels.min() == labels.max():
            return None
        return float((auroc if metric == "auroc" else average_precision)(counts_of(labels, scores))[0])
    if metric == "accuracy":
        good = labels > 0 if divider is None else labels >= divider
        return float(((scores >= (divider or 0)) == good).mean())
    if metric == "ab":
        return order_of(labels, scores).ab
    if metric == "spearman":
        return correlation(rankdata(labels), rankdata(scores))
    if metric == "pearson":
        return correlation(labels, scores)
    return float((np.abs(labels - scores) ** (2 if metric == "mse" else 1)).mean())
