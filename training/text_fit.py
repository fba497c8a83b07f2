"""A head from words beside labelled pictures: what the texts alone, training from them and plain training come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from common.manifest import EncoderFingerprint, HeadManifest
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import StepError
from training.head_fit import Fitted, fit_head
from training.labelled import Labelled, targets_of
from training.progress import console
from training.split import Split
from training.text_head import texts_for
from training.text_weights import TextWeights, text_weights

FEWEST_OF_A_CLASS = 5
"""Labelled pictures of a class, of several labels pictures with one, from which on a head from words is fitted."""
_SHOWN = {"accuracy": "accuracy", "auroc": "AUROC", "ece": "ECE", "brier": "Brier score"}


def words_for(recipe: Recipe, head: Head, encoder: EncoderFingerprint, data: Labelled) -> TextWeights | None:
    """The weights of the head's texts; None of a head without prompts.

    Raises:
        ManifestError: the texts are not embedded, or for another encoder.
        StepError: there are fewer than five labelled pictures of a class.
    """
    if not head.prompts:
        return None
    counts = targets_of(data.label, head.task, len(head.class_names)).sum(axis=0).astype(int).tolist()
    if head.task == "binary":
        counts = np.bincount(data.label, minlength=2).tolist()
    few = [
        f"{name}: {count}" for name, count in zip(head.class_names, counts, strict=True) if count < FEWEST_OF_A_CLASS
    ]
    if few:
        raise StepError(
            f"head {head.name} takes {FEWEST_OF_A_CLASS} labelled pictures of each class or more, found "
            f"{', '.join(few)}; label more, or serve the texts alone with make engines"
        )
    return text_weights(head, texts_for(recipe, encoder))


def with_words(manifest: HeadManifest, words: TextWeights, head: Head) -> HeadManifest:
    """The manifest of a fitted head, with the texts that it was made of."""
    weights = "texts" if head.fit.start is None else "trained"
    made_of = words.words.model_copy(update={"weights": weights})
    return manifest.model_copy(update={"training": manifest.training.model_copy(update={"words": made_of})})


def with_starts(
    fitted: Fitted, data: Labelled, head: Head, split: Split, groups: np.ndarray, words: TextWeights
) -> Fitted:
    """The fit with the figures of the texts alone and of plain training on the same test pictures in its report.

    A head that keeps the weights of its texts has no other start to be compared with.
    """
    if head.fit.start is None:
        return fitted
    plain = head.model_copy(
        update={"fit": head.fit.model_copy(update={"start": None}), "thresholds": [], "operating_points": []}
    )
    texts_alone = plain.model_copy(update={"calibration": "none", "prevalence": None})
    starts: dict[str, Any] = {
        "zero-shot": fit_head(data, texts_alone, fitted.device, split, groups, given=words).metrics,
        "few-shot": fitted.metrics,
        "plain": fit_head(data, plain, fitted.device, split, groups).metrics,
    }
    return replace(fitted, report=fitted.report | {"starts": starts})


def print_starts(fitted: Fitted) -> None:
    """Print the three side by side, if they were compared."""
    starts = fitted.report.get("starts")
    if starts is None:
        return
    table = Table(*("on the test images", *starts), title="zero-shot: the texts alone; plain: without them")
    for name, shown in _SHOWN.items():
        figures = [_figure(metrics, name) for metrics in starts.values()]
        table.add_row(shown, *figures)
    console.print(table)


def _figure(metrics: dict[str, Any], name: str) -> str:
    """A figure of all labels, or its mean over them, with its interval."""
    own = metrics if metrics.get(name) is not None else metrics.get("macro", {})
    spread = own.get(f"{name}_95_interval")
    if own.get(name) is None:
        return "-"
    return f"{own[name]:.3f}" + (f" ({spread[0]:.3f} to {spread[1]:.3f})" if spread else "")
