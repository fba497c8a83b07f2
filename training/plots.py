"""The pictures of a fit's report, each as the bytes of a PNG file."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from training.optimize import Curve


def loss_curve_png(curve: Curve) -> bytes:
    figure, axes = _axes("epoch", "loss")
    axes.plot(curve.train, label="train (with dropout)")
    axes.plot(curve.validation, label="validation")
    axes.axvline(curve.best_epoch, color="grey", linestyle="--", label=f"best epoch ({curve.best_epoch})")
    axes.legend()
    return _png(figure)


def score_histogram_png(labels: np.ndarray, scores: np.ndarray, class_names: list[str], threshold: float) -> bytes:
    figure, axes = _axes(f"score ({class_names[1]})", "test images")
    bins = np.linspace(0, 1, 41).tolist()
    for label, name in enumerate(class_names):
        axes.hist(scores[labels == label], bins=bins, alpha=0.6, label=name)
    axes.axvline(threshold, color="grey", linestyle="--", label=f"threshold {threshold:g}")
    axes.legend()
    return _png(figure)


def roc_png(labels: np.ndarray, scores: np.ndarray, auroc: float) -> bytes:
    figure, axes = _axes("false positive rate", "recall")
    false_positive_rate, recall, _ = roc_curve(labels, scores)
    axes.plot(false_positive_rate, recall, label=f"test, AUROC {auroc:.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="by chance")
    axes.legend()
    return _png(figure)


def _axes(x_label: str, y_label: str):
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
