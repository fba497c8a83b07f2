"""The pictures of a report, each as the bytes of a PNG file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.manifest import HeadManifest
from training.calibrate import ECE_BINS, ece, ece_bins
from training.intervals import clopper_pearson
from training.losses import Curve, TuningCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 10  # more lines than this cannot be told apart


@dataclass(frozen=True)
class Column:
    """One label on the rows that are shown."""

    name: str
    targets: np.ndarray  # (n,) 0 or 1, of a regression its value
    scores: np.ndarray  # (n,)
    thresholds: list[float]

    @property
    def has_both(self) -> bool:
        return bool(self.targets.min() != self.targets.max())


def score_pngs(manifest: HeadManifest, columns: list[Column]) -> dict[str, bytes]:
    """The pictures of a head's scores by their file names; those of a regression are other ones."""
    if manifest.is_graded:
        return {"predicted.png": predicted_png(columns[0])}
    files = {"score_histogram.png": score_histogram_png(manifest, columns), "roc.png": roc_png(columns)}
    return files if manifest.activation == "none" else files | {"reliability.png": reliability_png(columns)}


def evaluation_pngs(manifest: HeadManifest, columns: list[Column]) -> dict[str, bytes]:
    """The pictures of an evaluation by their file names."""
    if manifest.is_graded:
        return {"predicted.png": predicted_png(columns[0])}
    files = {
        "roc.png": roc_png(columns),
        "precision_recall.png": precision_recall_png(columns),
        "score_histogram.png": score_histogram_png(manifest, columns),
        "threshold_sweep.png": threshold_sweep_png(columns),
    }
    return files if manifest.activation == "none" else files | {"reliability.png": reliability_png(columns)}


def loss_curve_png(curve: Curve) -> bytes:
    figure, axes = _axes("weight decay" if curve.weight_decay else "epoch", "loss")
    at = curve.weight_decay or list(range(len(curve.train)))
    best = (
        f"best weight decay ({at[curve.best_epoch]:.3g})" if curve.weight_decay else f"best epoch ({curve.best_epoch})"
    )
    axes.plot(at, curve.train, label="train (with dropout)")
    axes.plot(at, curve.validation, label="held out")
    axes.axvline(at[curve.best_epoch], color="grey", linestyle="--", label=best)
    if curve.weight_decay:
        axes.set_xscale("log")
        axes.invert_xaxis()
    axes.legend(loc="upper right")
    return _png(figure)


def tuning_curve_png(curve: TuningCurve) -> bytes:
    """The losses of each epoch, and above them the AUROC by which the best one is chosen."""
    figure, axes = _axes("epoch", "loss")
    epochs = list(range(len(curve.train)))
    axes.plot(epochs, curve.train, label="train (augmented)")
    axes.plot(epochs, curve.validation, label="validation")
    axes.axvline(curve.best_epoch, color="grey", linestyle="--", label=f"best epoch ({curve.best_epoch})")
    right = axes.twinx()
    right.set_ylabel("AUROC")
    right.plot(epochs, curve.auroc, color="tab:green", marker="o", markersize=3, label="validation AUROC")
    lines = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="center right")
    return _png(figure)


def score_histogram_png(manifest: HeadManifest, columns: list[Column]) -> bytes:
    """Draw the scores of both classes of a binary head, or of the images that have each of several labels."""
    figure, axes = _axes(f"score ({manifest.labels[0]})" if len(columns) == 1 else "score of the label", "images")
    low, high = (0.0, 1.0) if manifest.activation != "none" else _range(columns)
    bins = np.linspace(low, high, 41).tolist()
    if len(columns) == 1:
        for value, name in enumerate(manifest.class_names):
            axes.hist(columns[0].scores[columns[0].targets == value], bins=bins, alpha=0.6, label=name)
        _mark_thresholds(axes, columns[0])
    else:
        for column in columns[:_MOST_LABELS]:
            axes.hist(column.scores[column.targets > 0], bins=bins, histtype="step", label=column.name)
    axes.set_yscale("symlog", linthresh=10)
    axes.legend(loc="upper center")
    return _png(figure)


def roc_png(columns: list[Column]) -> bytes:
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = _axes("false positive rate", "recall")
    for column in _with_both(columns):
        false_positive_rate, recall, _ = roc_curve(column.targets, column.scores)
        axes.plot(
            false_positive_rate,
            recall,
            label=f"{column.name}, AUROC {roc_auc_score(column.targets, column.scores):.3f}",
        )
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="by chance")
    axes.legend(loc="lower right")
    return _png(figure)


def precision_recall_png(columns: list[Column]) -> bytes:
    from sklearn.metrics import precision_recall_curve

    figure, axes = _axes("recall", "precision")
    for column in _with_both(columns):
        precision, recall, _ = precision_recall_curve(column.targets, column.scores)
        axes.plot(
            recall, precision, drawstyle="steps-pre", label=f"{column.name}, {column.targets.mean():.1%} positive"
        )
    axes.set_ylim(0, 1.02)
    _legend(axes, loc="lower left")
    return _png(figure)


def reliability_png(columns: list[Column]) -> bytes:
    """Share of positives against the mean score of each bin, with its Clopper-Pearson interval."""
    figure, axes = _axes("mean score of a bin", "share of positives")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    for column in columns[:_MOST_LABELS]:
        bins = ece_bins(column.scores)
        numbers = [number for number in range(ECE_BINS) if (bins == number).any()]
        mean = np.array([column.scores[bins == number].mean() for number in numbers])
        hits = [int(column.targets[bins == number].sum()) for number in numbers]
        rows = [int((bins == number).sum()) for number in numbers]
        share = np.array(hits) / np.array(rows)
        bars = np.array([clopper_pearson(hit, count) for hit, count in zip(hits, rows, strict=True)]).T
        label = f"{column.name}, ECE {ece(column.scores, column.targets):.3f}"
        axes.errorbar(mean, share, yerr=np.abs(bars - share), fmt="o-", capsize=2, markersize=4, label=label)
    axes.legend(loc="upper left")
    return _png(figure)


def threshold_sweep_png(columns: list[Column]) -> bytes:
    """Recall, precision and false positive rate at every threshold; of several labels the first."""
    figure, axes = _axes(f"threshold on the score of {columns[0].name}", "")
    column = columns[0]
    if column.has_both:
        order = np.sort(column.scores)
        positives, negatives = (np.sort(column.scores[column.targets == value]) for value in (1, 0))
        true = len(positives) - np.searchsorted(positives, order)
        false = len(negatives) - np.searchsorted(negatives, order)
        axes.plot(order, true / len(positives), label="recall")
        axes.plot(order, true / (true + false), label="precision")
        axes.plot(order, false / len(negatives), label="false positive rate")
    _mark_thresholds(axes, column)
    _legend(axes, loc="center left")
    return _png(figure)


def predicted_png(column: Column) -> bytes:
    figure, axes = _axes("label", f"score ({column.name})")
    axes.scatter(column.targets, column.scores, s=4, alpha=0.4)
    ends = [float(column.targets.min()), float(column.targets.max())]
    axes.plot(ends, ends, color="grey", linestyle="--", label="equal")
    axes.legend(loc="upper left")
    return _png(figure)


def _with_both(columns: list[Column]) -> list[Column]:
    return [column for column in columns if column.has_both][:_MOST_LABELS]


def _range(columns: list[Column]) -> tuple[float, float]:
    return min(float(column.scores.min()) for column in columns), max(float(column.scores.max()) for column in columns)


def _mark_thresholds(axes: Axes, column: Column) -> None:
    for value in column.thresholds:
        axes.axvline(value, color="grey", linestyle="--", label=f"threshold {value:.4g}")


def _legend(axes: Axes, loc: Literal["lower left", "center left"]) -> None:
    """Add a legend where something is drawn; of one class alone there are no curves."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=loc)  # to look for the best place takes long among many points


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
