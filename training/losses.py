"""Losses of a head's training: which fit which task, and how they fell. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from recipes.head_section import Loss, Task

LOSSES: dict[Task, list[Loss]] = {
    "binary": ["bce", "mse"],
    "multiclass": ["cross_entropy"],
    "multilabel": ["bce", "mse"],
    "regression": ["mse", "ab", "nll"],
    "ranking": ["ab", "mse", "nll"],
}
"""Of each task the losses it can be trained with, the default first."""


@dataclass
class Curve:
    """Mean loss per epoch, the one numbered 0 first; of lbfgs per weight decay, the strongest first."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    weight_decay: list[float] = field(default_factory=list)
    """Of lbfgs the weight decay of each step; empty of the others."""

    @property
    def best_epoch(self) -> int:
        return int(np.argmin(self.validation))

    def series(self) -> dict[str, list[float]]:
        """What is tracked of each epoch, by its name."""
        losses = {"loss_train": self.train, "loss_validation": self.validation}
        return losses | ({"weight_decay": self.weight_decay} if self.weight_decay else {})

    @property
    def chosen_weight_decay(self) -> float | None:
        return self.weight_decay[self.best_epoch] if self.weight_decay else None


@dataclass
class TuningCurve(Curve):
    """Losses per epoch, and the AUROC on the validation part, by which the best epoch is chosen."""

    auroc: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch of the best AUROC; of equal ones that of the least loss."""
        return max(range(len(self.auroc)), key=lambda epoch: (self.auroc[epoch], -self.validation[epoch]))

    def series(self) -> dict[str, list[float]]:
        """What is drawn and tracked, by its name."""
        return super().series() | {"auroc_validation": self.auroc}
