"""The figure that the demo prints of its scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from serving.demo import auroc_interval, auroc_of


def test_the_area_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.4
    for digits in (1, 6):  # with and without equal scores
        scores = (rng.random(200) + 0.3 * positive).round(digits)
        assert auroc_of(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_the_interval_holds_the_area_and_narrows_with_more_pictures() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (60, 600):
        positive = np.arange(count) % 3 == 0
        scores = rng.normal(size=count) + positive
        low, high = auroc_interval(scores, positive)
        assert 0.5 < low < auroc_of(scores, positive) < high < 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
