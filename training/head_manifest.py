"""head.json of a new head, and the files of one without labelled pictures: what every maker does alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.head_figures import head_metrics
from common.head_training import HeadTraining
from common.manifest import (
    EncoderFingerprint,
    HeadManifest,
    Layer,
    ManifestError,
    Threshold,
    head_weights,
    read_head,
    tool_versions,
    write_atomically,
    write_manifest,
)
from common.writing import check_writable
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import StepError


def new_head(
    head: Head,
    weights: bytes,
    tools: Sequence[str],
    *,
    encoder: EncoderFingerprint,
    layers: list[Layer],
    activation: str,
    thresholds: list[list[Threshold]],
    training: HeadTraining,
    made_by: str | None,
    notice: str | None,
    **more: Any,
) -> HeadManifest:
    """The manifest of a head that the recipe's entry `head` describes.

    Args:
        head: of the recipe.
        weights: the bytes of head.safetensors.
        tools: distributions whose versions are written down.
        encoder: that it fits.
        layers: of the head.
        activation: of its last layer's outputs.
        thresholds: of each label.
        training: what made it.
        made_by: the recipe's name.
        notice: the recipe's.
        more: other fields of the manifest; without them the head is not calibrated and has no figures.
    """
    described = {"calibrated": False, "metrics": head_metrics({}), "class_names": head.class_names, **more}
    names = described["class_names"]
    return HeadManifest(
        name=head.name,
        recipe=head.settings(),
        made_by=made_by,
        notice=notice,
        task=head.task,
        encoder=encoder,
        labels=names[1:] if head.task == "binary" else names,
        layers=layers,
        activation=activation,  # pyright: ignore[reportArgumentType] (pydantic checks it)
        thresholds=thresholds,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        training=training,
        versions=tool_versions(*tools),
        **described,
    )


def fixed_thresholds(head: Head, labels: Sequence[str]) -> list[list[Threshold]]:
    """The recipe's numbers, or their default, for each of the labels."""
    row = [Threshold(value=value, operating_point="fixed") for value in head.fixed_thresholds]
    return [row for _ in labels]


def check_without_labels(head: Head) -> None:
    """Refuse what only labelled pictures can answer, of a head that was made without any."""
    for key in ("operating_points", "prevalence"):
        if getattr(head, key):
            raise StepError(
                f"head {head.name}: {key} {getattr(head, key)} takes labelled pictures, and there is no fit of any; "
                "give thresholds, or run make train first"
            )


def is_fitted_to_labels(
    folder: Path, recipe: Recipe, head: Head, is_same: Callable[[HeadManifest], bool], of_what: str, instead: str
) -> bool:
    """True if a head is there that was fitted to labelled pictures, of the same thing.

    Args:
        folder: of the head.
        recipe: that has the head.
        head: of the recipe.
        is_same: whether the head that is there is of the same thing as the one that would be made.
        of_what: that it is of otherwise, for the error.
        instead: what one has once it is moved away, for the error.

    Raises:
        StepError: it is of something else.
    """
    try:
        manifest = read_head(folder)
    except ManifestError:
        return False
    if manifest.training.counts is None:
        return False
    if is_same(manifest):
        return True
    raise StepError(
        f"{folder} holds a head that was fitted to labelled pictures, {of_what}; fit it again: "
        f"python -m training.fit --recipe {recipe.name} --head {head.name}, or move it away to have {instead}"
    )


def write_new_head(folder: Path, manifest: HeadManifest, weights: bytes) -> bool:
    """Write head.safetensors and head.json, which comes last; False if the same are there."""
    if _is_there(folder, manifest):
        return False
    check_writable(folder)
    write_atomically(folder / "head.safetensors", weights)
    write_manifest(manifest, folder / "head.json")
    return True


def _is_there(folder: Path, manifest: HeadManifest) -> bool:
    try:
        there = read_head(folder)
        head_weights(there, folder)
    except ManifestError:
        return False
    return there == manifest
