from __future__ import annotations

import numpy as np
import pytest
from artefacts import encoder_manifest, write_head

from training.plots import Column, evaluation_pngs, score_pngs

RNG = np.random.default_rng(0)
TARGETS = (RNG.random(200) < 0.3).astype(float)
COLUMN = Column("nsfw", TARGETS, np.clip(RNG.random(200) * 0.6 + TARGETS * 0.4, 0, 1), [0.4, 0.7])


def _manifest(tmp_path, **changes):
    return write_head(tmp_path, encoder_manifest(), ["safe", "nsfw"]).model_copy(update=changes)


def test_a_binary_head_has_every_picture(tmp_path) -> None:
    files = evaluation_pngs(_manifest(tmp_path), [COLUMN])
    assert len(files) == 5
    assert all(content.startswith(b"\x89PNG") for content in files.values())


def test_a_raw_score_has_no_reliability(tmp_path) -> None:
    files = evaluation_pngs(_manifest(tmp_path, activation="none"), [COLUMN])
    assert "reliability.png" not in files


@pytest.mark.parametrize("targets", [np.zeros(200), np.ones(200)])
def test_one_class_alone_can_be_drawn(tmp_path, targets: np.ndarray) -> None:
    assert evaluation_pngs(_manifest(tmp_path), [Column("nsfw", targets, COLUMN.scores, [])])


def test_several_labels_share_the_pictures(tmp_path) -> None:
    manifest = _manifest(tmp_path, task="multilabel", labels=["a", "b"], class_names=["a", "b"])
    assert len(score_pngs(manifest, [COLUMN, COLUMN])) == 3


def test_a_regression_has_its_own(tmp_path) -> None:
    files = score_pngs(_manifest(tmp_path, task="regression"), [COLUMN])
    assert set(files) == {"predicted.png"}
