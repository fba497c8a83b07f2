"""The figure that the demo prints of its scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from serving.demo import auroc_of


def test_the_area_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.4
    for digits in (1, 6):  # with and without equal scores
        scores = (rng.random(200) + 0.3 * positive).round(digits)
        assert auroc_of(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
