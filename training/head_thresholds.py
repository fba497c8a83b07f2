"""Thresholds of a head and what they do: chosen on the scores held out from its weights, measured on the test part.

The scores are kept beside the head, so that other thresholds need neither its training nor its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from common.head_figures import Realised
from common.manifest import HeadManifest, Threshold
from recipes.head_section import Head
from training.errors import StepError
from training.metrics import task_metrics
from training.operating_points import Chosen, OperatingPoint, choose_threshold, realised

SCORES = "scores.safetensors"


@dataclass(frozen=True)
class Scores:
    """Scores of rows that the weights behind them never saw, and what those rows are."""

    held_out_targets: np.ndarray  # (n, L); 0 or 1, or a regression's values
    held_out_scores: np.ndarray  # (n, L) float64, as served
    test_targets: np.ndarray  # (n test, L)
    test_scores: np.ndarray  # (n test, L) float64

    def to_bytes(self, weights_sha256: str) -> bytes:
        """The contents of scores.safetensors, which belongs to the weights of that sum."""
        tensors = {name: np.ascontiguousarray(array) for name, array in vars(self).items()}
        return safetensors.numpy.save(tensors, {"weights_sha256": weights_sha256})


def read_scores(folder: Path, manifest: HeadManifest) -> Scores:
    """The scores that were kept when the head was fitted.

    Raises:
        StepError: there are none, or they are another head's.
    """
    path, remedy = folder / SCORES, f"fit the head again: python -m training.fit --recipe {manifest.made_by}"
    if not path.is_file():
        raise StepError(f"{path}: not found; the head is from before its scores were kept, {remedy}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("weights_sha256") != manifest.weights_sha256:
                raise StepError(f"{path}: belongs to other weights than head.json's; {remedy}")
            return Scores(**{name: file.get_tensor(name) for name in Scores.__dataclass_fields__})
    except safetensors.SafetensorError as error:
        raise StepError(f"{path}: not readable ({error}); {remedy}") from error


def chosen_thresholds(head: Head, points: list[OperatingPoint], scores: Scores) -> dict[str, list[Chosen]]:
    """Choose each label's thresholds by its operating points, ascending; none without points.

    Raises:
        StepError: no threshold achieves one of them on the held-out rows.
    """
    chosen = {}
    for at, name in enumerate(head.labels if points else []):
        targets, column = scores.held_out_targets[:, at], scores.held_out_scores[:, at]
        if targets.min() == targets.max():
            raise StepError(f"label {name!r} is the same in all rows held out; operating points need both")
        of_label = [choose_threshold(point, targets, column, head.prevalence) for point in points]
        chosen[name] = sorted(of_label, key=lambda point: point.threshold)
    return chosen


def measured_thresholds(
    head: Head, chosen: dict[str, list[Chosen]], scores: Scores, divider: float | None = None
) -> list[list[Threshold]]:
    """List each label's thresholds, the fixed ones where none are chosen, with what they do to the test part.

    Args:
        head: of the recipe.
        chosen: of each label, by operating points.
        scores: of the test part.
        divider: the grade from which on a picture is good, the threshold of a head of grades that has no other.
    """
    if divider is not None and not head.fixed_thresholds:
        good = (scores.test_targets[:, 0] >= divider).astype(np.float32)
        measure = Realised(**realised(good, scores.test_scores[:, 0], divider, None))
        return [[Threshold(value=divider, operating_point="good", realised=measure)]]
    rows = []
    for at, name in enumerate(head.labels):
        points = [(point.threshold, point.operating_point) for point in chosen[name]] if chosen else _fixed(head)
        targets, column = scores.test_targets[:, at], scores.test_scores[:, at]
        rows.append([_measured(head, value, text, targets, column) for value, text in points])
    return rows


def metrics_at(
    head: Head, thresholds: list[list[Threshold]], scores: Scores, probabilities: bool, divider: float | None = None
) -> dict[str, Any]:
    """The head's figures on the test part, decided by the first threshold of each label."""
    return task_metrics(
        head.task,
        head.labels,
        scores.test_targets,
        scores.test_scores,
        [row[0].value if row else 0.5 for row in thresholds],
        seed=head.fit.seed,
        probabilities=probabilities,
        prevalence=head.prevalence,
        divider=divider,
    )


def _fixed(head: Head) -> list[tuple[float, str]]:
    return [(value, "fixed") for value in head.fixed_thresholds]


def _measured(head: Head, value: float, text: str, targets: np.ndarray, scores: np.ndarray) -> Threshold:
    if head.is_graded:
        return Threshold(value=value, operating_point=text)
    figures = Realised(**realised(targets, scores, value, head.prevalence))
    return Threshold(value=value, operating_point=text, realised=figures)
