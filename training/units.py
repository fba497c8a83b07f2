"""The units of a head's outputs: it is trained on standardised grades, or on their order alone, and gives grades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recipes.head_section import Head, Loss

_DEVIATION_FACTORS = (0.1, 10.0)


@dataclass(frozen=True)
class Units:
    """An affine map of each output."""

    scale: np.ndarray  # (outputs,)
    offset: np.ndarray  # (outputs,)

    def of(self, outputs: np.ndarray) -> np.ndarray:
        """(n, outputs) → the same in the labels' units."""
        return outputs * self.scale + self.offset


def mean_and_spread(head: Head, label: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of grades, in which they are trained on; 0 and 1 of classes."""
    if not head.is_graded:
        return 0.0, 1.0
    return float(label.mean()), float(label.std()) or 1.0


def units_of(loss: Loss, head: Head, outputs: np.ndarray, grades: np.ndarray, mean: float, std: float) -> Units:
    """What turns the outputs of a trained head into scores.

    Of `ab`, which learns an order, it is the line of least squares through the held-out grades. Of `nll` the standard
    deviation is scaled so that held-out grades are as far off as it says.

    Args:
        loss: that it was trained with.
        head: of the recipe.
        outputs: (n, outputs) of held-out rows.
        grades: (n,) theirs.
        mean: of the grades in training.
        std: of the grades in training.
    """
    if loss == "ab":
        return Units(*(np.array([value]) for value in _line(outputs[:, 0], grades, mean, std)))
    if loss == "nll":
        distance = (grades - (outputs[:, 0] * std + mean)) / (std * np.exp(outputs[:, 1]))
        factor = np.clip(np.sqrt(np.mean(distance**2)), *_DEVIATION_FACTORS)
        return Units(np.array([std, 1.0]), np.array([mean, np.log(std) + np.log(factor)]))
    count = outputs.shape[1]
    return (
        Units(np.full(count, std), np.full(count, mean)) if head.is_graded else Units(np.ones(count), np.zeros(count))
    )


def _line(values: np.ndarray, grades: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    """Slope and offset; of values that do not rise with the grades, those that give the grades' own spread."""
    spread = float(values.std())
    slope = float(np.mean((values - values.mean()) * (grades - grades.mean()))) / spread**2 if spread > 0 else 0.0
    if slope <= 0:
        slope = std / spread if spread > 0 else 1.0
    return slope, float(grades.mean() - slope * values.mean())
