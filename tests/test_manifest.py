"""Manifests: fingerprints that must agree, revisions that must differ, files never half-written."""

from __future__ import annotations

import numpy as np
import pytest
from artefacts import encoder_manifest, write_head
from pydantic import BaseModel

from common.head_figures import LabelMetrics, Realised, RegressionMetrics, SeveralLabelsMetrics, head_metrics
from common.manifest import (
    ManifestError,
    compare_fingerprints,
    read_encoder,
    read_head,
    write_atomically,
    write_manifest,
)
from common.manifest_parts import GrowingPart
from training.metrics import task_metrics
from training.operating_points import realised


def test_manifests_survive_a_round_trip(tmp_path):
    encoder = encoder_manifest()
    write_manifest(encoder, tmp_path / "encoder.json")
    assert read_encoder(tmp_path) == encoder
    head = write_head(tmp_path, encoder, ["safe", "nsfw"])
    assert read_head(tmp_path) == head
    assert read_head(tmp_path).revision == head.revision


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"weights_sha256": "c" * 64}, ["a" * 64, "c" * 64]),
        ({"normalize": False}, ["True", "False"]),
        ({"output": {"name": "embedding", "dtype": "FP32", "dims": [768]}}, ["512", "768"]),
    ],
)
def test_a_head_of_another_encoder_is_refused_with_both_values(tmp_path, change, values):
    head = write_head(tmp_path, encoder_manifest(), ["safe", "nsfw"])
    compare_fingerprints(head, encoder_manifest())
    with pytest.raises(ManifestError) as caught:
        compare_fingerprints(head, encoder_manifest(**change))
    assert all(value in str(caught.value) for value in values)


def test_a_head_of_another_preprocessing_is_refused(tmp_path):
    encoder = encoder_manifest()
    head = write_head(tmp_path, encoder, ["safe", "nsfw"])
    squashed = [encoder.preprocessing[0].model_copy(update={"resize_mode": "squash"})]
    with pytest.raises(ManifestError, match=r"exact-shortest-bicubic-224.*exact-squash-bicubic-224"):
        compare_fingerprints(head, encoder_manifest(preprocessing=squashed))


def test_an_encoder_exported_anew_keeps_its_heads(tmp_path):
    head = write_head(tmp_path, encoder_manifest(), ["safe", "nsfw"])
    compare_fingerprints(head, encoder_manifest(onnx_sha256="d" * 64, id="renamed"))


def test_the_revision_changes_with_whatever_decides_a_score(tmp_path):
    encoder = encoder_manifest()
    original = write_head(tmp_path / "a", encoder, ["safe", "nsfw"])
    others = [
        write_head(tmp_path / "b", encoder, ["safe", "nsfw"], seed=1),
        write_head(tmp_path / "c", encoder, ["safe", "nsfw"], thresholds=(0.6,)),
        write_head(tmp_path / "d", encoder_manifest(weights_sha256="c" * 64), ["safe", "nsfw"]),
    ]
    revisions = {head.revision for head in (original, *others)}
    assert len(revisions) == 4
    assert all(0 <= revision < 2**63 for revision in revisions)
    assert write_head(tmp_path / "e", encoder, ["safe", "nsfw"]).revision == original.revision


def test_missing_and_malformed_manifests_name_the_remedy(tmp_path):
    with pytest.raises(ManifestError, match=r"head.json: not found; make it with: python -m training.fit"):
        read_head(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "encoder"}')
    with pytest.raises(ManifestError, match=r"not a valid manifest \(id: Field required"):
        read_encoder(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "head.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text, where bytes are wanted")  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["head.json"]


def undocumented(part: BaseModel) -> list[str]:
    """Keys of a part, and of the parts in it, that are no fields of their model."""
    keys = list(part.model_extra or {})
    for value in dict(part).values():
        inner = list(value.values()) if isinstance(value, dict) else [value]
        keys += [key for each in inner if isinstance(each, BaseModel) for key in undocumented(each)]
    return keys


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("binary", LabelMetrics),
        ("multiclass", SeveralLabelsMetrics),
        ("multilabel", SeveralLabelsMetrics),
        ("regression", RegressionMetrics),
    ],
)
def test_every_figure_of_the_training_is_a_documented_field(task, model):
    labels = ["a"] if task in ("binary", "regression") else ["a", "b"]
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 40)
    targets = np.stack([classes, 1 - classes], axis=1)[:, : len(labels)]
    scores = np.clip(targets * 0.3 + rng.random(targets.shape) * 0.7, 0, 1)
    figures = task_metrics(task, labels, targets, scores, [0.5] * len(labels), seed=0, probabilities=True)
    metrics = head_metrics(figures)
    assert type(metrics) is model
    assert not undocumented(metrics)
    assert metrics.model_dump() == figures
    figures = realised(targets[:, 0], scores[:, 0], 0.5)
    assert not undocumented(Realised(**figures))
    assert Realised(**figures).model_dump() == figures


def test_a_growing_part_writes_what_is_set_and_keeps_what_it_does_not_know():
    class Part(GrowingPart):
        seed: int | None = None
        loss: str | None = None

    assert Part(seed=None).model_dump_json() == '{"seed":null}'
    assert Part.model_validate({"odd": 1, "loss": "bce"}).model_dump() == {"loss": "bce", "odd": 1}
    assert Part().model_copy(update={"seed": 3}).model_dump() == {"seed": 3}
