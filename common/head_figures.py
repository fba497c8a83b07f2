"""Figures of a head in head.json: its metrics on the test split, and what each threshold does there.

`training.metrics` and `training.operating_points` compute them and say how. A figure is None where the data has no
sample for it, and its interval is None where a replicate of the bootstrap had none.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, TypeAdapter

from common.manifest_parts import GrowingPart

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
"""Ends of a 95 % interval."""


class Figure(GrowingPart):
    """A figure and its 95 % interval."""

    value: float
    interval_95: Interval


class Realised(GrowingPart):
    """Figures of one threshold on the test split, on which it was not chosen."""

    n: int = 0
    """Images measured."""
    prevalence: float | None = None
    """Share of positives that precision and F1 are for: the recipe's, else the test split's."""
    recall: Figure | None = None
    precision: Figure | None = None
    fpr: Figure | None = None
    """False positive rate."""
    f1: Figure | None = None


class Confusion(GrowingPart):
    """Images on each side of a label's threshold."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


class LabelMetrics(GrowingPart):
    """Figures of one label; a binary head has one label, and a published head has no figures."""

    n: int = 0
    """Images measured."""
    positives: int | None = None
    """How many of them have the label."""
    reason: str | None = None
    """Why there are no figures: all of the images have the label, or none has."""
    threshold: float | None = None
    """The score from which an image counts as positive in accuracy, recall, precision, fpr and confusion."""
    auroc: float | None = None
    auroc_95_interval: Interval | None = None
    average_precision: float | None = None
    average_precision_95_interval: Interval | None = None
    accuracy: float | None = None
    accuracy_95_interval: Interval | None = None
    recall: float | None = None
    recall_95_interval: Interval | None = None
    precision: float | None = None
    precision_95_interval: Interval | None = None
    fpr: float | None = None
    """False positive rate."""
    fpr_95_interval: Interval | None = None
    recall_at_precision: float | None = Field(default=None, alias="recall_at_precision_0.95")
    """The highest recall of a threshold whose precision is at least 0.95."""
    recall_at_precision_95_interval: Interval | None = Field(default=None, alias="recall_at_precision_0.95_95_interval")
    fpr_at_recall: float | None = Field(default=None, alias="fpr_at_recall_0.99")
    """The lowest false positive rate of a threshold whose recall is at least 0.99."""
    fpr_at_recall_95_interval: Interval | None = Field(default=None, alias="fpr_at_recall_0.99_95_interval")
    ece: float | None = None
    """Expected calibration error; only where scores are probabilities, as the Brier score."""
    ece_95_interval: Interval | None = None
    brier: float | None = None
    brier_95_interval: Interval | None = None
    confusion: Confusion | None = None


class MeanMetrics(GrowingPart):
    """Means over the labels that have the figure."""

    auroc: float | None = None
    auroc_95_interval: Interval | None = None
    average_precision: float | None = None
    average_precision_95_interval: Interval | None = None
    ece: float | None = None
    ece_95_interval: Interval | None = None
    brier: float | None = None
    brier_95_interval: Interval | None = None


class SeveralLabelsMetrics(GrowingPart):
    """Figures of a multiclass or multilabel head."""

    n: int
    """Images measured."""
    macro: MeanMetrics
    labels: dict[str, LabelMetrics]
    accuracy: float
    """Share of images whose labels are all right: the class of the highest score, or every label at its threshold."""
    accuracy_95_interval: Interval | None = None
    confusion: list[list[int]] | None = None
    """Of a multiclass head images by their true class (row) and the class of the highest score (column)."""


class RegressionMetrics(GrowingPart):
    """Figures of graded pictures: of a regression, or a ranking."""

    n: int
    """Images measured."""
    mse: float
    """Mean squared error."""
    mse_95_interval: Interval | None = None
    mae: float | None = None
    """Mean distance of a score from the grade."""
    mae_95_interval: Interval | None = None
    mse_of_mean: float | None = None
    """Mean squared error of always answering the mean of the test split's labels."""
    r2: float | None = None
    """Share of the labels' variance that the scores explain; 0 or less is no better than the mean."""
    r2_95_interval: Interval | None = None
    pearson: float | None = None
    pearson_95_interval: Interval | None = None
    spearman: float | None = None
    spearman_95_interval: Interval | None = None
    ab: float | None = None
    """Share of pairs of pictures with different grades that the scores put in the right order."""
    ab_95_interval: Interval | None = None
    ab_pairs: int | None = None
    """Pairs with different grades."""
    ab_tied_scores: int | None = None
    """Those of them whose scores are equal; each counts half."""
    ab_tied_grades: int | None = None
    """Further pairs, whose grades are equal; they do not count."""
    accuracy: float | None = None
    """Share of pictures on the right side of `accuracy_divider`."""
    accuracy_95_interval: Interval | None = None
    accuracy_divider: float | None = None
    """The grade from which on a picture is good."""
    sets: dict[str, RegressionMetrics] | None = None
    """The same figures of the rows `train`, `validation` (held out from the weights that scored them), `evaluation`
    (the test split) and `all`."""


def _kind(metrics: Any) -> str:
    if isinstance(metrics, GrowingPart):
        return type(metrics).__name__
    if "labels" in metrics:
        return SeveralLabelsMetrics.__name__
    return RegressionMetrics.__name__ if "mse" in metrics else LabelMetrics.__name__


HeadMetrics = Annotated[
    Annotated[LabelMetrics, Tag(LabelMetrics.__name__)]
    | Annotated[SeveralLabelsMetrics, Tag(SeveralLabelsMetrics.__name__)]
    | Annotated[RegressionMetrics, Tag(RegressionMetrics.__name__)],
    Discriminator(_kind),
]
"""Figures of a head, by its task: binary, of several labels, regression."""

_HEAD_METRICS: TypeAdapter[LabelMetrics | SeveralLabelsMetrics | RegressionMetrics] = TypeAdapter(HeadMetrics)


def head_metrics(figures: dict[str, Any]) -> LabelMetrics | SeveralLabelsMetrics | RegressionMetrics:
    """Figures as `training.metrics.task_metrics` computes them, for the manifest."""
    return _HEAD_METRICS.validate_python(figures)
