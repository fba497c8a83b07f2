"""The fit of a head: trains it, calibrates it, chooses its thresholds and measures it. It reads and writes no file.

What is chosen, the epochs, the calibration and the thresholds, is chosen on out-of-fold logits: all rows but the test
part are cut into folds, and each fold's logits come from a head that was trained on the others. Then the final weights
are fitted to all those rows, as long as the folds found best. The test part sees none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.head_training import Refit
from common.manifest import (
    Calibration,
    Layer,
    Prevalence,
    ScoreDistribution,
    Threshold,
)
from recipes.head_section import GRADED, Head, Loss, Task
from training.calibrate import (
    Activation,
    CalibrationChoice,
    activated,
    calibrated_logits,
    calibration_report,
    choose_calibration,
    log_losses,
)
from training.classifier_weights import ClassifierWeights
from training.errors import StepError
from training.folds import folds_of
from training.grades import divider_of
from training.head_thresholds import Scores, chosen_thresholds, measured_thresholds, metrics_at
from training.labelled import Labelled, targets_of
from training.leakage import group_rows
from training.losses import LOSSES, Curve
from training.metrics import regression_metrics
from training.operating_points import OperatingPoint, parse_point
from training.score_distribution import score_distribution
from training.split import Split
from training.text_weights import TextWeights
from training.units import units_of

if TYPE_CHECKING:
    from training.optimize import Progress

MOST_CROSS_FITTED = 20_000
"""Rows above which the validation part alone chooses: it is large enough, and folds would take their time.

Other weights than those that it calibrated are then served only of lbfgs, whose solution is one: two runs of adamw
differ by more in the mean of their logits than the further rows are worth."""


@dataclass(frozen=True)
class Plan:
    """The training that a recipe's head asks for, checked before anything is computed."""

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
    scores: Scores
    score_distribution: ScoreDistribution  # of rows held out from the weights that scored them
    metrics: dict[str, Any]
    report: dict[str, Any]  # calibration before and after, operating points as chosen
    device: str
    refit: Refit  # the rows of the final weights
    uncalibrated: str  # why, empty where the head is calibrated as the recipe says
    divider: float | None  # the grade from which on a picture is good
    layer_weights: list[float] | None  # of layers that are merged
    choices: int  # between pictures that the weights were fitted to
    warnings: list[str]  # what a user must not miss


def plan_of(head: Head) -> Plan:
    """Read what to train from the recipe.

    Raises:
        StepError: settings that do not go together, or an operating point that is none.
    """
    loss = head.fit.loss or LOSSES[head.task][0]
    if loss not in LOSSES[head.task]:
        raise StepError(
            f"fit.loss {loss} does not fit a {head.task} head; take {' or '.join(LOSSES[head.task])}, or leave it out"
        )
    points = [parse_point(text) for text in head.operating_points]
    if head.is_graded and points:
        raise StepError(
            f"operating points are for classes, head {head.name} is a {head.task}: give it thresholds or an "
            "accuracy_divider"
        )
    if loss == "nll" and head.fit.optimizer == "lbfgs":
        raise StepError("fit.optimizer lbfgs solves no nll, whose loss is not convex; take adamw, or leave it out")
    activation = _activation(head.task, loss, head.calibration)
    if head.prevalence is not None and activation == "none":
        raise StepError("prevalence corrects probabilities, and with loss mse and calibration none there are none")
    return Plan(head.task, loss, activation, points)


def fit_head(
    data: Labelled,
    head: Head,
    device: str,
    split: Split,
    groups: np.ndarray | None = None,
    progress: Progress | None = None,
    layer_widths: Sequence[int] = (),
    given: TextWeights | ClassifierWeights | None = None,
) -> Fitted:
    """Train, calibrate, choose thresholds and measure; writes nothing.

    Args:
        data: the labelled rows.
        head: of the recipe.
        device: torch's name of it.
        split: of the rows.
        groups: (n,) int; rows of a group share a fold. By default the near-duplicates of the recipe.
        progress: called after every epoch.
        layer_widths: of the encoder's layers that lie side by side in the embedding, for `merge_layers`.
        given: weights of the head's texts or of the encoder's own classifier, which are kept; with `fit.start: prompts`
            the training starts from the texts'.

    Raises:
        StepError: settings that do not go together, an operating point out of reach, a loss that is not finite.
    """
    plan = plan_of(head)
    merged = merged_layers(head, layer_widths, data.embedding.shape[1])
    words = given if isinstance(given, TextWeights) else None
    if given is not None and head.fit.start is None:
        trained = _untrained(data, head, given, split)
    else:
        trained = _train(data, head, plan, device, split, groups, progress, merged, words)
    held_out, test = trained.held_out, trained.test
    divider = divider_of(head.accuracy_divider, data.label[_fitting_rows(split)]) if head.is_graded else None
    choice = _choose_calibration(head, plan, held_out, words is not None and head.fit.start is None)
    calibration = choice.calibration
    prevalence = _prevalence(head, calibration, held_out)
    held_out_scores, test_scores = (
        activated(calibrated_logits(part.logits, calibration, prevalence), plan.activation) for part in (held_out, test)
    )
    scores = Scores(held_out.targets, held_out_scores, test.targets, test_scores)
    chosen = chosen_thresholds(head, plan.points, scores)
    thresholds = measured_thresholds(head, chosen, scores, divider)
    metrics = metrics_at(head, thresholds, scores, plan.probabilities, divider)
    if head.is_graded:
        metrics["sets"] = _sets(trained, data, head.fit.seed, divider, metrics)
    return Fitted(
        plan=plan,
        layers=trained.layers,
        tensors=trained.tensors,
        split=split,
        curve=trained.curve,
        calibration=calibration,
        prevalence=prevalence,
        thresholds=thresholds,
        scores=scores,
        score_distribution=score_distribution(head.task, np.concatenate([held_out_scores, test_scores])),
        metrics=metrics,
        report=_deviation_report(test)
        | {
            "calibration": _calibration_report(plan, calibration, held_out, test),
            "operating_points": {name: [point.report() for point in row] for name, row in chosen.items()},
        },
        device=device,
        refit=trained.refit,
        uncalibrated=choice.reason,
        divider=divider,
        layer_weights=trained.layer_weights,
        choices=trained.choices,
        warnings=_warnings(head, metrics, choice),
    )


def merged_layers(head: Head, widths: Sequence[int], embed_dim: int) -> int:
    """How many layers of the encoder are summed into the head's input; 1 where it sees the embedding as it is.

    Raises:
        StepError: there are no several layers, or their widths differ.
    """
    if head.fit.merge_layers == "concatenate":
        return 1
    if len(widths) < 2 or sum(widths) != embed_dim:
        layers = f"{len(widths)} layers" if widths else "no widths of its layers"
        raise StepError(
            f"head {head.name}: merge_layers weighted is for an encoder with several layers, this one has {layers}; "
            "list them in the recipe's encoder (layers: [1, 4, 8]) and run python -m build.encoder again"
        )
    if len(set(widths)) > 1:
        raise StepError(
            f"head {head.name}: merge_layers weighted sums layers of one width, found {list(widths)}; leave out layer "
            "0, the model's projected output, or take merge_layers: concatenate"
        )
    return len(widths)


@dataclass(frozen=True)
class _Part:
    """Rows as layers see them that were not trained on them."""

    logits: np.ndarray  # (n, L) float64
    targets: np.ndarray  # (n, L)
    deviation: np.ndarray | None = None  # (n,) of a head that gives it


@dataclass(frozen=True)
class _Trained:
    """Final weights, and what chose how long they were trained."""

    layers: list[Layer]
    tensors: dict[str, np.ndarray]
    curve: Curve
    held_out: _Part
    test: _Part
    refit: Refit
    refit_rows: np.ndarray
    everything: _Part  # all rows by the final weights
    layer_weights: list[float] | None
    choices: int


def _train(
    data: Labelled,
    head: Head,
    plan: Plan,
    device: str,
    split: Split,
    groups: np.ndarray | None,
    progress: Progress | None,
    merged: int,
    words: TextWeights | None,
) -> _Trained:
    """Choose the epochs on held-out rows, then fit the final weights to all rows but the test part."""
    # Here and not above: --help needs no torch.
    from training.head import hidden_layers, in_units_of, logits_of, new_layers, tensors_of
    from training.merge import without_merge
    from training.optimize import Fold, fit_as_chosen, optimize_folds
    from training.trainable import Trainables

    fit, hidden = head.fit, hidden_layers(head.fit)
    rows = _fitting_rows(split)
    made = Trainables(data, head, plan.loss, rows, device, merged, words)
    sides = _sides(data, head, split, rows, groups)
    heads = [made.head(train) for train, _ in sides]
    pairs = zip(heads, sides, strict=True)
    folds = [Fold(module, made.examples(train), made.examples(held_out)) for module, (train, held_out) in pairs]
    curve = optimize_folds(folds, fit, plan.loss, progress)
    outputs = np.concatenate(
        [logits_of(module, data.embedding[held_out]) for module, (_, held_out) in zip(heads, sides, strict=True)]
    )
    held_out_rows = np.concatenate([held_out for _, held_out in sides])
    if len(sides) > 1 or (fit.folds and fit.optimizer == "lbfgs"):
        module = made.head(rows)
        fit_as_chosen(module, made.examples(rows), fit, plan.loss, curve)
    else:
        module, rows = heads[0], split.train
    units = units_of(plan.loss, head, outputs, data.label[held_out_rows], made.mean, made.std)
    served, layer_weights = without_merge(module)
    layers = new_layers(hidden, fit.input_dropout)
    everything = logits_of(served, data.embedding)

    def part(values: np.ndarray, kept: np.ndarray) -> _Part:
        values, targets = units.of(values), targets_of(data.label[kept], head.task, len(head.labels))
        return _Part(values[:, : targets.shape[1]], targets, np.exp(values[:, 1]) if plan.loss == "nll" else None)

    return _Trained(
        layers=layers,
        tensors=in_units_of(tensors_of(served, layers), len(hidden), units.scale, units.offset),
        curve=curve,
        held_out=part(outputs, held_out_rows),
        test=part(everything[split.test], split.test),
        refit=Refit(folds=len(sides) if len(sides) > 1 else 0, rows=len(rows)),
        refit_rows=rows,
        everything=part(everything, np.arange(len(data.label))),
        layer_weights=layer_weights,
        choices=made.choice_count(rows),
    )


def _untrained(data: Labelled, head: Head, given: TextWeights | ClassifierWeights, split: Split) -> _Trained:
    """Keep weights that have seen none of the rows: all but the test part choose what is chosen.

    Without folds the validation part alone does: the encoder of a fine-tuned classifier has seen the training part.
    """

    def part(rows: np.ndarray) -> _Part:
        return _Part(given.logits(data.embedding[rows]), targets_of(data.label[rows], head.task, len(head.labels)))

    held_out = part(_fitting_rows(split) if head.fit.folds else split.validation)
    loss = float(log_losses(held_out.logits, held_out.targets, _activation(head.task, "bce", "none")).mean())
    curve = Curve([loss], [loss])  # a single epoch, the one before any training
    return _Trained(
        layers=given.layers,
        tensors=given.tensors,
        curve=curve,
        held_out=held_out,
        test=part(split.test),
        refit=Refit(folds=0, rows=0),
        refit_rows=np.array([], int),
        everything=part(np.arange(len(data.label))),
        layer_weights=None,
        choices=0,
    )


def _fitting_rows(split: Split) -> np.ndarray:
    """All rows but those of the test part."""
    return np.sort(np.concatenate([split.train, split.validation]))


def _sides(
    data: Labelled, head: Head, split: Split, rows: np.ndarray, groups: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """List the rows that each fold is trained on and those that it holds out."""
    if not head.fit.folds or len(rows) > MOST_CROSS_FITTED:
        return [(split.train, split.validation)]
    if groups is None:
        groups = group_rows(data.sha256, data.embedding, head.fit.near_duplicate_cosine).ids
    fold = folds_of(_strata(data.label[rows], head), groups[rows], head.fit.folds, head.fit.seed)
    return [(rows[fold != number], rows[fold == number]) for number in np.unique(fold)]


def _strata(label: np.ndarray, head: Head) -> np.ndarray:
    """(n,) what the folds have equal shares of: classes, of several labels the rarest, of a regression the fifths."""
    if head.is_graded:
        return np.searchsorted(np.quantile(label, [0.2, 0.4, 0.6, 0.8]), label)
    if head.task == "multilabel":
        rarity = np.where(label != 0, label.sum(axis=0), np.iinfo(np.int64).max)
        return np.where(label.any(axis=1), rarity.argmin(axis=1), label.shape[1])
    return label


def _sets(
    trained: _Trained, data: Labelled, seed: int, divider: float | None, evaluation: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The figures of the rows that the weights were fitted to, that were held out, of the test part, and of all."""
    grades, scores = data.label, trained.everything.logits[:, 0]
    rows = trained.refit_rows
    held_out = trained.held_out
    return {
        "train": regression_metrics(grades[rows], scores[rows], seed, divider),
        "validation": regression_metrics(held_out.targets[:, 0], held_out.logits[:, 0], seed, divider),
        "evaluation": {**evaluation},
        "all": regression_metrics(grades, scores, seed, divider),
    }


def _deviation_report(test: _Part) -> dict[str, Any]:
    """How many grades of the test part lie within what the deviation says holds 95 % of them."""
    if test.deviation is None:
        return {}
    inside = np.abs(test.targets[:, 0] - test.logits[:, 0]) <= 1.96 * test.deviation
    return {"deviation": {"mean": float(test.deviation.mean()), "within_95": float(inside.mean())}}


def _warnings(head: Head, metrics: dict[str, Any], choice: CalibrationChoice) -> list[str]:
    """Write what a user must not miss: a head that is not known to be better than none."""
    warnings = []
    if head.is_graded and metrics["ab_95_interval"] is not None and metrics["ab_95_interval"][0] <= 0.5:
        low, high = metrics["ab_95_interval"]
        warnings.append(
            f"head {head.name} may order pictures no better than chance: AB {metrics['ab']:.3f} "
            f"(95 %: {low:.3f} to {high:.3f}) on the test part; add labelled images"
        )
    if head.task == "regression" and not (metrics["r2"] or 0) > 0:
        warnings.append(
            f"head {head.name} is no better than always answering the mean: its mean squared error on the test part is "
            f"{metrics['mse']:.4g}, that of the mean {metrics['mse_of_mean']:.4g}; add labelled images, or ask whether "
            "the pictures show what was graded"
        )
    macro = metrics.get("macro") or metrics
    if macro.get("auroc") is not None and macro["auroc_95_interval"][0] <= 0.5:
        low, high = macro["auroc_95_interval"]
        warnings.append(
            f"head {head.name} may be no better than chance: AUROC {macro['auroc']:.3f} "
            f"(95 %: {low:.3f} to {high:.3f}) on the test part; add labelled images"
        )
    if choice.calibration is None and choice.reason:
        warnings.append(f"head {head.name} is not calibrated: {choice.reason}; add labelled images")
    if choice.is_held:
        warnings.append(f"head {head.name} is calibrated by few labelled images: {choice.reason}; add more")
    return warnings


def _activation(task: Task, loss: Loss, calibration: str) -> Activation:
    """A head trained with MSE on 0 and 1 gives its raw output, unless calibration makes a probability of it."""
    if task in GRADED or (loss == "mse" and calibration == "none"):
        return "none"
    return "softmax" if task == "multiclass" else "sigmoid"


def _choose_calibration(head: Head, plan: Plan, held_out: _Part, from_words: bool) -> CalibrationChoice:
    if head.is_graded or head.calibration == "none":
        return CalibrationChoice(None, "")
    part = held_out.logits, held_out.targets, plan.activation, head.labels
    return choose_calibration(head.calibration, *part, from_words)


def _prevalence(head: Head, calibration: Calibration | None, held_out: _Part) -> Prevalence | None:
    """Return the share of positives that the logits assume: the data's, or a half where the loss weighs classes so."""
    if head.prevalence is None:
        return None
    weighed = head.fit.class_weights and head.fit.loss != "mse" and calibration is None
    share = 0.5 if weighed else float(held_out.targets.mean())
    return Prevalence(training=share, target=head.prevalence)


def _calibration_report(
    plan: Plan, calibration: Calibration | None, held_out: _Part, test: _Part
) -> dict[str, Any] | None:
    """Before and after, at the data's own prevalence. Raw outputs count as the probabilities nearest to them."""
    if calibration is None:
        return None
    before, held_out_scores = (
        np.clip(part.logits, 0, 1) if plan.loss == "mse" else activated(part.logits, plan.activation)
        for part in (test, held_out)
    )
    after = activated(calibrated_logits(test.logits, calibration), plan.activation)
    return calibration_report(before, after, test.targets, (held_out_scores, held_out.targets))
