"""The fit of a head: trains it, calibrates it, chooses its thresholds and measures it. It reads and writes no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.head_figures import Realised
from common.manifest import (
    Calibration,
    Layer,
    Prevalence,
    ScoreDistribution,
    Threshold,
)
from recipes.schema import Head
from training.calibrate import Activation, activated, calibrated_logits, calibration_report, fit_calibration
from training.errors import StepError
from training.labelled import Labelled, targets_of
from training.losses import LOSSES, Curve, Loss, Task
from training.metrics import task_metrics
from training.operating_points import Chosen, OperatingPoint, choose_threshold, parse_point, realised
from training.score_distribution import score_distribution
from training.split import Split

if TYPE_CHECKING:
    from training.optimize import Examples


@dataclass(frozen=True)
class Plan:
    """What a recipe's head means for its training, checked before anything is computed."""

    task: Task
    loss: Loss
    activation: Activation
    points: list[OperatingPoint]

    @property
    def probabilities(self) -> bool:
        return self.activation != "none"


@dataclass(frozen=True)
class Fitted:
    """A trained head and what is known of it."""

    plan: Plan
    layers: list[Layer]
    tensors: dict[str, np.ndarray]
    split: Split
    curve: Curve
    calibration: Calibration | None
    prevalence: Prevalence | None
    thresholds: list[list[Threshold]]
    test_targets: np.ndarray  # (n test, L)
    test_scores: np.ndarray  # (n test, L)
    score_distribution: ScoreDistribution  # of both held-out parts
    metrics: dict[str, Any]
    report: dict[str, Any]  # calibration before and after, operating points as chosen
    device: str


def plan_of(head: Head) -> Plan:
    """What to train, from the recipe.

    Raises:
        StepError: settings that do not go together, or an operating point that is none.
    """
    loss = head.fit.loss or LOSSES[head.task][0]
    if loss not in LOSSES[head.task]:
        raise StepError(
            f"fit.loss {loss} does not fit a {head.task} head; take {' or '.join(LOSSES[head.task])}, or leave it out"
        )
    points = [parse_point(text) for text in head.operating_points]
    if head.task == "regression" and points:
        raise StepError(f"operating points are for classes, head {head.name} is a regression: give it thresholds")
    activation = _activation(head.task, loss, head.calibration)
    if head.prevalence is not None and activation == "none":
        raise StepError("prevalence corrects probabilities, and with loss mse and calibration none there are none")
    return Plan(head.task, loss, activation, points)


def fit_head(data: Labelled, head: Head, device: str, split: Split) -> Fitted:
    """Train, calibrate, choose thresholds and measure; writes nothing."""
    # Here and not above: --help needs no torch.
    from training.head import head_from_layers, hidden_layers, initial_tensors, logits_of, new_layers, tensors_of
    from training.optimize import Examples, optimize

    plan, fit, label_count = plan_of(head), head.fit, len(head.labels)
    hidden = hidden_layers(fit)
    layers = new_layers(hidden)
    module = head_from_layers(layers, initial_tensors(data.embedding[split.train], hidden, label_count, fit.seed))
    train, validation = (
        Examples.from_arrays(data.embedding[rows], data.label[rows], device, plan.loss)
        for rows in (split.train, split.validation)
    )
    curve = optimize(module.to(device), train, validation, fit, plan.loss)
    held_out, test = (
        _Part(logits_of(module, data.embedding[rows]), targets_of(data.label[rows], head.task, label_count))
        for rows in (split.validation, split.test)
    )
    calibration = _fit_calibration(head, plan, held_out)
    prevalence = _prevalence(head, calibration, held_out, train)
    scores = [
        activated(calibrated_logits(part.logits, calibration, prevalence), plan.activation) for part in (held_out, test)
    ]
    chosen = _choose(head, plan, held_out.targets, scores[0])
    thresholds = _thresholds(head, plan, chosen, test.targets, scores[1])
    return Fitted(
        plan=plan,
        layers=layers,
        tensors=tensors_of(module, layers),
        split=split,
        curve=curve,
        calibration=calibration,
        prevalence=prevalence,
        thresholds=thresholds,
        test_targets=test.targets,
        test_scores=scores[1],
        score_distribution=score_distribution(head.task, np.concatenate(scores)),
        metrics=task_metrics(
            head.task,
            head.labels,
            test.targets,
            scores[1],
            [row[0].value if row else 0.5 for row in thresholds],
            seed=fit.seed,
            probabilities=plan.probabilities,
            prevalence=head.prevalence,
        ),
        report={
            "calibration": _calibration_report(plan, calibration, held_out, test),
            "operating_points": {name: [point.report() for point in row] for name, row in chosen.items()},
        },
        device=device,
    )


@dataclass(frozen=True)
class _Part:
    """A part of the split as the trained layers see it."""

    logits: np.ndarray  # (n, L) float64
    targets: np.ndarray  # (n, L)


def _activation(task: Task, loss: Loss, calibration: str) -> Activation:
    """A head trained with MSE on 0 and 1 gives its raw output, unless calibration makes a probability of it."""
    if task == "regression" or (loss == "mse" and calibration == "none"):
        return "none"
    return "softmax" if task == "multiclass" else "sigmoid"


def _fit_calibration(head: Head, plan: Plan, held_out: _Part) -> Calibration | None:
    if head.task == "regression" or head.calibration == "none":
        return None
    return fit_calibration(head.calibration, held_out.logits, held_out.targets, plan.activation)


def _prevalence(head: Head, calibration: Calibration | None, held_out: _Part, train: Examples) -> Prevalence | None:
    """What the logits take for the share of positives: the held-out data's once calibrated, else the loss's."""
    if head.prevalence is None:
        return None
    if calibration is not None:
        share = float(held_out.targets.mean())
    else:
        share = 0.5 if head.fit.class_weights else float(train.label.mean())
    return Prevalence(training=share, target=head.prevalence)


def _choose(head: Head, plan: Plan, targets: np.ndarray, scores: np.ndarray) -> dict[str, list[Chosen]]:
    """For each label the thresholds of its operating points, ascending; none when the recipe fixes them."""
    chosen = {}
    for at, name in enumerate(head.labels if plan.points else []):
        if targets[:, at].min() == targets[:, at].max():
            raise StepError(f"label {name!r} is the same in the whole validation split; operating points need both")
        found = [choose_threshold(point, targets[:, at], scores[:, at], head.prevalence) for point in plan.points]
        chosen[name] = sorted(found, key=lambda point: point.threshold)
    return chosen


def _thresholds(
    head: Head, plan: Plan, chosen: dict[str, list[Chosen]], targets: np.ndarray, scores: np.ndarray
) -> list[list[Threshold]]:
    """For each label its thresholds, with what they do to the test split."""
    fixed = [(value, "fixed") for value in head.fixed_thresholds]
    rows = []
    for at, name in enumerate(head.labels):
        points = [(point.threshold, point.operating_point) for point in chosen[name]] if chosen else fixed
        measured = [
            Realised(**realised(targets[:, at], scores[:, at], value, head.prevalence))
            if head.task != "regression"
            else None
            for value, _ in points
        ]
        rows.append(
            [
                Threshold(value=value, operating_point=text, realised=found)
                for (value, text), found in zip(points, measured, strict=True)
            ]
        )
    return rows


def _calibration_report(
    plan: Plan, calibration: Calibration | None, held_out: _Part, test: _Part
) -> dict[str, Any] | None:
    """Before and after, at the data's own prevalence. Raw outputs count as the probabilities nearest to them."""
    if calibration is None:
        return None
    before, known = (
        np.clip(part.logits, 0, 1) if plan.loss == "mse" else activated(part.logits, plan.activation)
        for part in (test, held_out)
    )
    after = activated(calibrated_logits(test.logits, calibration), plan.activation)
    return calibration_report(before, after, test.targets, (known, held_out.targets))
