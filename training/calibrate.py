"""Logits → probabilities that mean what they say, and how far they are from it.

A calibration is `logit * scale + offset` before the activation, per label. It is fitted on logits of rows that the
weights which gave them were never trained on, and kept only where rows that it was not fitted to itself become more
likely by it. Its scale is above 0, so that it never changes the order of scores. What it achieved is measured on the
test split, which nothing was chosen on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from common.manifest import Calibration, HeadManifest, Prevalence
from training.folds import folds_of

Activation = Literal["sigmoid", "softmax", "none"]

Method = Literal["platt", "temperature"]

ECE_BINS = 15  # of equal width
FEWEST_OF_A_CLASS = 10
"""Rows on either side of a label that Platt's two numbers take; temperature's one takes twice as many in all."""
_MOST_EXPONENT = 6.0
"""The scale of a temperature lies between exp of this and of its negative."""
_RISE_OF_95 = 1.92
"""How much less likely the rows may be at the ends of a scale's interval, as a logarithm: half of chi squared's."""

_LEAST_SCALE = 1e-2
_FOLDS = 5


@dataclass(frozen=True)
class CalibrationChoice:
    """The calibration that held-out rows can carry, if any."""

    calibration: Calibration | None
    """None when the rows cannot say; a scale of 1 and an offset of 0 when they say that none is needed."""
    reason: str
    """Empty when it is the one that was wanted; else what was not calibrated, and why."""
    is_held: bool = False
    """True when rows are few, and the scale is held near that of the texts that gave the logits."""


@dataclass(frozen=True)
class _Refusal:
    """Reason why rows cannot carry a method."""

    reason: str
    needless: bool = False
    """True when the logits are as good without it."""


def choose_calibration(
    method: Method,
    logits: np.ndarray,
    targets: np.ndarray,
    activation: Activation,
    labels: list[str],
    from_words: bool = False,
) -> CalibrationChoice:
    """The wanted calibration where it helps rows that it was not fitted to, else temperature, else none.

    A method is kept when it lowers the five-fold cross-fitted log loss by more than one standard error of the rows'
    differences; with a sigmoid and Platt's method each label is judged by itself.

    Texts alone know no temperature of their own, however sure they sound, and their weights were fitted to no row.
    Where rows are too few for either method they get `held_temperature`, and the reason says how wide its interval is.

    Args:
        method: the recipe's.
        logits: (n, L) of held-out rows.
        targets: (n, L) 0 or 1; of a softmax one 1 in each row.
        activation: sigmoid or softmax.
        labels: the names of the L columns.
        from_words: the logits are those of texts, which no picture changed.
    """
    reasons, needless = [], False
    for candidate in dict.fromkeys((method, "temperature")):
        apart = candidate == "platt" and activation == "sigmoid"
        parts = [[at] for at in range(len(labels))] if apart else [list(range(len(labels)))]
        refusals = [_refusal(candidate, logits[:, part], targets[:, part], activation) for part in parts]
        for part, refusal in zip(parts, refusals, strict=True):
            if refusal is not None:
                of_label = f" of {labels[part[0]]}" if len(parts) > 1 else ""
                reasons.append(f"{candidate}{of_label}: {refusal.reason}")
        if None in refusals:
            scale, offset = np.ones(len(labels)), np.zeros(len(labels))
            for part, refusal in zip(parts, refusals, strict=True):
                if refusal is None:
                    fitted = fit_calibration(candidate, logits[:, part], targets[:, part], activation)
                    scale[part], offset[part] = fitted.scale, fitted.offset
            calibration = Calibration(method=candidate, scale=scale.tolist(), offset=offset.tolist())
            return CalibrationChoice(calibration, "; ".join(reasons))
        needless = all(refusal is not None and refusal.needless for refusal in refusals)
    if from_words and len(targets) < 2 * FEWEST_OF_A_CLASS and targets.any():
        scale, (low, high) = held_temperature(logits, targets, activation)
        reasons.append(f"so a scale of {scale:.2g} (95 %: {low:.2g} to {high:.2g}), held near the texts' own")
        held = Calibration(method="temperature", scale=[scale] * len(labels), offset=[0.0] * len(labels))
        return CalibrationChoice(held, "; ".join(reasons), is_held=True)
    same = Calibration(method=method, scale=[1.0] * len(labels), offset=[0.0] * len(labels)) if needless else None
    return CalibrationChoice(same, "; ".join(reasons))


def _refusal(method: Method, logits: np.ndarray, targets: np.ndarray, activation: Activation) -> _Refusal | None:
    """Return why these rows cannot carry the method; None when they can."""
    positives = targets.sum(axis=0)
    fewest = int(min(positives.min(), (len(targets) - positives).min()))
    if method == "platt" and fewest < FEWEST_OF_A_CLASS:
        return _Refusal(f"{fewest} held-out rows of a class are fewer than {FEWEST_OF_A_CLASS}")
    if len(targets) < 2 * FEWEST_OF_A_CLASS:
        return _Refusal(f"{len(targets)} held-out rows are fewer than {2 * FEWEST_OF_A_CLASS}")
    if min(fit_calibration(method, logits, targets, activation).scale) <= _LEAST_SCALE * (1 + 1e-6):
        return _Refusal("the share of positives does not rise with the logit of held-out rows")
    gains = log_losses(logits, targets, activation)
    fold = _calibration_folds(targets)
    for held_out in (fold == number for number in range(_FOLDS)):
        fitted = fit_calibration(method, logits[~held_out], targets[~held_out], activation)
        gains[held_out] -= log_losses(calibrated_logits(logits[held_out], fitted), targets[held_out], activation)
    if gains.mean() <= gains.std() / np.sqrt(len(gains)):
        return _Refusal(f"the log loss of held-out rows does not fall ({-gains.mean():+.4f})", needless=True)
    return None


def _calibration_folds(targets: np.ndarray) -> np.ndarray:
    """(n,) the fold of each row, drawn so that each has an equal share of every combination of labels."""
    _, strata = np.unique(targets, axis=0, return_inverse=True)
    return folds_of(strata.ravel(), np.arange(len(targets)), _FOLDS, seed=0)


def log_losses(logits: np.ndarray, targets: np.ndarray, activation: Activation) -> np.ndarray:
    """(n, L), (n, L) → (n,) negative log likelihood of each row."""
    if activation == "softmax":
        return -(targets * log_softmax(logits, axis=1)).sum(axis=1)
    return (np.logaddexp(0, logits) - targets * logits).sum(axis=1)


def fit_calibration(method: Method, logits: np.ndarray, targets: np.ndarray, activation: Activation) -> Calibration:
    """The scale and offset of least log-loss, the scale above 0.

    Args:
        method: platt fits a scale and an offset per label, temperature one scale for all labels.
        logits: (n, L).
        targets: (n, L) 0 or 1; of a softmax one 1 in each row.
        activation: sigmoid treats the labels apart, softmax together.
    """
    labels = logits.shape[1]
    if method == "temperature":
        scale, offset = np.full(labels, _temperature_scale(logits, targets, activation)), np.zeros(labels)
    elif activation == "softmax":
        scale, offset = _vector_scaling(logits, targets)
    else:
        columns = [platt(logits[:, label], targets[:, label]) for label in range(labels)]
        scale, offset = np.transpose(columns)
    return Calibration(method=method, scale=scale.tolist(), offset=offset.tolist())


def platt(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """(n,), (n,) → scale and offset of a logistic regression on the logit; the scale is at least 0.01.

    As Platt did, the targets stand a little off 0 and 1, `(positives + 1) / (positives + 2)` and
    `1 / (negatives + 2)`: the fit stays finite where the logits separate the classes.
    """
    positives = float(targets.sum())
    negatives = len(targets) - positives
    softened = np.where(targets > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    center, spread = logits.mean(), logits.std() or 1.0
    standard = (logits - center) / spread

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value = standard * parameters[0] + parameters[1]
        slope = expit(value) - softened
        return float(np.mean(np.logaddexp(0, value) - softened * value)), np.array(
            [np.mean(slope * standard), np.mean(slope)]
        )

    bounds = [(_LEAST_SCALE * spread, None), (None, None)]
    scale, offset = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-7}).x
    return float(scale / spread), float(offset - scale * center / spread)


def held_temperature(
    logits: np.ndarray, targets: np.ndarray, activation: Activation
) -> tuple[float, tuple[float, float]]:
    """The scale of least log-loss that stays near 1 as a row's worth holds it, and what it may be at 95 %.

    A few rows that all happen to be right would otherwise want a scale without end.

    Args:
        logits: (n, L).
        targets: (n, L) 0 or 1; of a softmax one 1 in each row.
    """

    def loss(exponent: float) -> float:
        return float(log_losses(logits * np.exp(exponent), targets, activation).sum() + exponent**2 / 2)

    bounds = (-_MOST_EXPONENT, _MOST_EXPONENT)
    best: Any = minimize_scalar(loss, bounds=bounds, method="bounded")
    grid = np.linspace(*bounds, 481)
    inside = grid[np.array([loss(exponent) for exponent in grid]) <= best.fun + _RISE_OF_95]
    low, high = min(inside[0], best.x), max(inside[-1], best.x)
    return float(np.exp(best.x)), (float(np.exp(low)), float(np.exp(high)))


def calibrated_logits(
    logits: np.ndarray, calibration: Calibration | None, prevalence: Prevalence | None = None
) -> np.ndarray:
    """(n, L) → (n, L): scaled, offset, and shifted by the difference of the prevalences' log-odds."""
    if calibration is not None:
        logits = logits * np.array(calibration.scale) + np.array(calibration.offset)
    if prevalence is not None:
        logits = logits + (logit(prevalence.target) - logit(prevalence.training))
    return logits


def activated(logits: np.ndarray, activation: Activation) -> np.ndarray:
    """(n, L) → (n, L) scores."""
    if activation == "softmax":
        return softmax(logits, axis=1)
    return expit(logits) if activation == "sigmoid" else logits


def scores_from_logits(manifest: HeadManifest, logits: np.ndarray) -> np.ndarray:
    """Compute what the served head answers: (n, L) logits of its layers → (n, L) float64 scores."""
    logits = logits[:, : len(manifest.labels)]  # a last column is that of the deviation
    return activated(calibrated_logits(logits, manifest.calibration, manifest.prevalence), manifest.activation)


def calibration_report(
    before: np.ndarray,  # (n test, L) probabilities without calibration
    after: np.ndarray,  # (n test, L) with it
    targets: np.ndarray,  # (n test, L) 0 or 1
    fitted_on: tuple[np.ndarray, np.ndarray],  # probabilities and targets of the calibration data, for isotonic
) -> dict[str, Any]:
    """ECE and Brier score on the test split, mean over the labels: before, after, and of isotonic regression.

    Isotonic regression is there to compare with: when it is much better, the logits are bent in a way that two
    numbers cannot straighten. It is not served, because its steps tie scores that the head told apart.
    """
    steps = _isotonic(fitted_on, before)
    return {
        name: {"ece": _mean(ece, scores, targets), "brier": _mean(brier, scores, targets)}
        for name, scores in (("before", before), ("after", after), ("isotonic", steps))
    }


def ece(probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """(n,), (n,) → expected calibration error over ECE_BINS bins of equal width."""
    weights = np.ones(len(targets)) if weights is None else weights
    bins = ece_bins(probabilities)
    gaps = np.bincount(bins, weights * (probabilities - targets), ECE_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def ece_bins(probabilities: np.ndarray) -> np.ndarray:
    """(n,) → (n,) number of the bin of each."""
    return np.minimum((probabilities * ECE_BINS).astype(int), ECE_BINS - 1)


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean(np.square(probabilities - targets)))


def _mean(figure, scores: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean([figure(scores[:, label], targets[:, label]) for label in range(scores.shape[1])]))


def _isotonic(fitted_on: tuple[np.ndarray, np.ndarray], scores: np.ndarray) -> np.ndarray:
    from sklearn.isotonic import IsotonicRegression

    known, targets = fitted_on
    columns = [
        IsotonicRegression(out_of_bounds="clip").fit(known[:, label], targets[:, label]).predict(scores[:, label])
        for label in range(scores.shape[1])
    ]
    return np.stack(columns, axis=1)


def _temperature_scale(logits: np.ndarray, targets: np.ndarray, activation: Activation) -> float:
    """1 / temperature; found as a logarithm, so that it stays above 0, and bounded where the classes separate."""

    def loss(parameters: np.ndarray) -> float:
        scaled = logits * np.exp(parameters[0])
        if activation == "softmax":
            return float(-np.sum(targets * log_softmax(scaled, axis=1)) / len(logits))
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

    return float(np.exp(minimize(loss, [0.0], method="L-BFGS-B", bounds=[(-_MOST_EXPONENT, _MOST_EXPONENT)]).x[0]))


def _vector_scaling(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A scale and an offset per class before the softmax, held near 1 and 0 as one imagined row would hold them."""
    rows, labels = logits.shape

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, offset = parameters[:labels], parameters[labels:]
        log_probabilities = log_softmax(logits * scale + offset, axis=1)
        slope = np.exp(log_probabilities) - targets
        pull = np.concatenate([scale - 1, offset])
        gradient = np.concatenate([(slope * logits).sum(axis=0), slope.sum(axis=0)])
        value = -np.sum(targets * log_probabilities) + 0.5 * pull @ pull
        return float(value / rows), (gradient + pull) / rows

    bounds = [(_LEAST_SCALE, None)] * labels + [(None, None)] * labels
    solution = minimize(loss, np.r_[np.ones(labels), np.zeros(labels)], jac=True, method="L-BFGS-B", bounds=bounds).x
    return solution[:labels], solution[labels:]
