"""Figures of graded pictures: how often scores put two of them in the right order, and which are the good ones.

AB is the share of pairs, among all pairs of pictures whose grades differ, that the scores order as the grades do; a
pair whose scores are equal counts half. It is 1 for the right order, 0.5 for chance, and equals (Kendall's tau-a + 1) /
2 where no grades and no scores repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import kendalltau, rankdata

from training.intervals import Interval, clopper_pearson, wilson

_MOST_COMPARED = 1000
"""Pictures that are compared with all others for the interval of AB."""
_FEW = 30
_Z = 1.959963984540054

Divider = Literal["median", "none"] | float


@dataclass(frozen=True)
class Order:
    """Pairs of pictures whose grades differ."""

    pairs: int
    right: int
    """Those that the scores order as the grades do."""
    tied: int
    """Those whose scores are equal."""
    tied_grades: int
    """Further pairs, whose grades are equal: no order is right, so they do not count."""

    @property
    def ab(self) -> float | None:
        """None where no two grades differ."""
        return (self.right + self.tied / 2) / self.pairs if self.pairs else None


def order_of(grades: np.ndarray, scores: np.ndarray) -> Order:
    """(n,) and (n,) → the pairs, counted exactly in n log n."""
    total = len(grades) * (len(grades) - 1) // 2
    tied_grades, tied_scores = _tied(grades), _tied(scores)
    tied_both = _tied(np.unique(np.stack([grades, scores]), axis=1, return_inverse=True)[1].reshape(-1))
    pairs, tied = total - tied_grades, tied_scores - tied_both
    lead = 0  # right less wrong
    if len(grades) == 2 and pairs and total > tied_scores:
        lead = 1 if (grades[0] < grades[1]) == (scores[0] < scores[1]) else -1  # of two SciPy's has no p-value
    elif pairs and total > tied_scores:
        tau = kendalltau(grades, scores, method="asymptotic").statistic  # type: ignore[attr-defined]
        lead = round(tau * np.sqrt(float(pairs)) * np.sqrt(float(total - tied_scores)))
    return Order(pairs, (pairs - tied + lead) // 2, tied, tied_grades)


def ab_interval(grades: np.ndarray, scores: np.ndarray, order: Order) -> Interval | None:
    """The 95 % interval of AB, as of a U-statistic: pictures are drawn, and all pairs between them.

    Of few pictures, and where all pairs are right or wrong, it is Wilson's with half as many trials as pictures: so
    many pairs share no picture.
    """
    ab = order.ab
    if ab is None:
        return None
    if len(grades) < _FEW or ab in (0, 1):
        return wilson(ab, max(len(grades) // 2, 1))
    rows = np.linspace(0, len(grades) - 1, min(len(grades), _MOST_COMPARED)).round().astype(int)
    excess = np.array([_excess(grades, scores, row, ab) for row in rows])
    error = 2 * excess.std() / (2 * order.pairs / len(grades)) / np.sqrt(len(grades))
    return float(max(ab - _Z * error, 0.0)), float(min(ab + _Z * error, 1.0))


def ab_of_choices(pairs: np.ndarray, scores: np.ndarray) -> Order:
    """The order of given pairs, (m, 2) rows of winner and loser."""
    lead = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    return Order(len(pairs), int((lead > 0).sum()), int((lead == 0).sum()), 0)


def divider_of(setting: Divider, grades: np.ndarray) -> float | None:
    """The grade from which on a picture is good: the recipe's, or the median of these (n,) grades.

    Where more than half of them share the lowest grade it is the next one, so that some are bad.
    """
    if setting == "none":
        return None
    if setting != "median":
        return float(setting)
    median, lowest = float(np.median(grades)), float(grades.min())
    above = grades[grades > lowest]
    return float(above.min()) if median <= lowest and len(above) else median


def quick_figures(grades: np.ndarray, scores: np.ndarray, divider: float | None) -> dict[str, float | None]:
    """MSE, MAE, AB, Spearman, Pearson and accuracy of (n,) scores, without intervals."""
    return {
        "mse": float(np.square(grades - scores).mean()),
        "mae": float(np.abs(grades - scores).mean()),
        "ab": order_of(grades, scores).ab,
        "spearman": correlation(rankdata(grades), rankdata(scores)),
        "pearson": correlation(grades, scores),
        "accuracy": None if divider is None else float(((scores >= divider) == (grades >= divider)).mean()),
    }


def order_figures(grades: np.ndarray, scores: np.ndarray, divider: float | None) -> dict[str, Any]:
    """AB with its pairs, and accuracy at the divider, with their intervals."""
    order = order_of(grades, scores)
    spread = ab_interval(grades, scores, order)
    figures: dict[str, Any] = {
        "ab": order.ab,
        "ab_95_interval": None if spread is None else list(spread),
        "ab_pairs": order.pairs,
        "ab_tied_scores": order.tied,
        "ab_tied_grades": order.tied_grades,
    }
    if divider is not None:
        hits = int(((scores >= divider) == (grades >= divider)).sum())
        figures |= {"accuracy": hits / len(grades), "accuracy_95_interval": list(clopper_pearson(hits, len(grades)))}
        figures["accuracy_divider"] = divider
    return figures


SHOWN = ("mse", "mae", "ab", "spearman", "pearson", "accuracy")
"""The figures of a line, in its order."""


def figures_line(name: str, figures: dict[str, Any]) -> str:
    """One line of a set of pictures: every figure with its interval, and what became of ties."""
    parts = [f"{name}: {figures['n']} pictures"]
    for key in SHOWN:
        value, spread = figures.get(key), figures.get(f"{key}_95_interval")
        if value is not None:
            parts.append(f"{key} {value:.4g}" + (f" ({spread[0]:.4g} to {spread[1]:.4g})" if spread else ""))
    if figures.get("ab_tied_scores"):
        parts.append(f"{figures['ab_tied_scores']} of {figures['ab_pairs']} pairs have equal scores and count half")
    return ", ".join(parts)


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's; None where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def _excess(grades: np.ndarray, scores: np.ndarray, row: int, ab: float) -> float:
    """Pairs with one picture that are right, less as many as AB makes one expect of them."""
    differs = grades != grades[row]
    same = np.sign(grades[differs] - grades[row]) * np.sign(scores[differs] - scores[row])
    return float(((same + 1) / 2).sum() - ab * differs.sum())


def _tied(values: np.ndarray) -> int:
    """Pairs of equal values."""
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())
