from __future__ import annotations

import pytest
from artefacts import encoder_manifest, write_head

from common.head_training import HeadTraining
from training.model_card import model_card

FIGURE = {"value": 0.5, "interval_95": [0.4, 0.6]}
REPORT = {
    "revision": "0123",
    "rows": {"which": "test", "n": 40, "data_sha256": "d" * 64},
    "same_data_as_trained": True,
    "metrics": {"n": 40, "auroc": 0.9, "auroc_95_interval": [0.8, 0.95], "precision": None},
    "operating_points": {
        "nsfw": [
            {"operating_point": "recall>=0.99", "threshold": 0.1, "recall": FIGURE, "precision": FIGURE, "fpr": FIGURE},
            {"operating_point": "fpr<=0.01", "threshold": 0.9, "recall": FIGURE, "precision": None, "fpr": FIGURE},
        ]
    },
    "calibration": None,
    "slices": {"width=9": {"n": 4, "reason": "fewer than 10 rows"}},
}


@pytest.fixture
def manifest(tmp_path):
    return write_head(tmp_path, encoder_manifest(), ["safe", "nsfw"], thresholds=(0.1, 0.9), notice="For tests alone.")


def test_the_card_says_what_matters(manifest) -> None:
    card = model_card(manifest.model_copy(update={"licence": "MIT"}), REPORT, ["roc.png"])
    for words in (
        "| licence | MIT |",
        "| AUROC | 0.9000 | 0.8000 to 0.9500 |",
        "0 allow, 1 review, 2 block",
        "| nsfw | fpr<=0.01 | 0.9 | 0.5000 (0.4000 to 0.6000) | none |",
        "| width=9 | 4 | fewer than 10 rows |",
        "- For tests alone.",
        "Precision depends on how common positives are",
        "![roc](roc.png)",
    ):
        assert words in card


def test_an_imported_head_hides_no_ignorance(manifest) -> None:
    card = model_card(manifest, REPORT, [])
    assert "trained elsewhere" in card
    assert "| licence | not stated |" in card


def test_data_that_changed_is_named(manifest) -> None:
    training = HeadTraining(counts={"train": {"safe": 1, "nsfw": 2}}, data_sha256="e" * 64)
    trained = manifest.model_copy(update={"training": training})
    card = model_card(trained, REPORT | {"same_data_as_trained": False}, [])
    assert "The store has changed since" in card
    assert "| train | 1 | 2 |" in card
