from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from training import metrics
from training.metrics import auroc_interval, binary_metrics

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
SCORES = np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.5, 0.8, 0.9])


def test_figures_by_hand() -> None:
    found = binary_metrics(LABELS, SCORES, threshold=0.5, seed=0)
    assert found["confusion"] == {
        "true_positive": 3,
        "false_positive": 1,
        "false_negative": 1,
        "true_negative": 3,
    }
    assert (found["n"], found["recall"], found["precision"], found["accuracy"]) == (8, 0.75, 0.75, 0.75)
    assert found["auroc"] == pytest.approx(14 / 16)
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)


def test_a_score_at_the_threshold_passes() -> None:
    assert binary_metrics(LABELS, SCORES, 0.9, seed=0)["confusion"]["true_positive"] == 1


def test_nothing_passed_has_no_precision_and_stays_json() -> None:
    found = binary_metrics(LABELS, SCORES, 0.95, seed=0)
    assert found["precision"] is None
    assert found["recall"] == 0
    json.dumps(found, allow_nan=False)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=40), st.integers(0, 1000))
def test_each_resample_is_sklearns_weighted_auroc(values: list[int], seed: int) -> None:
    scores = np.sort(np.array(values, float))
    labels = np.arange(len(scores)) % 2
    starts = np.flatnonzero(np.r_[True, np.diff(scores) != 0])
    [found] = metrics._resampled_auroc(labels, starts, 1, np.random.default_rng(seed))
    rng, counts = np.random.default_rng(seed), np.zeros(len(scores))
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        counts[rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
    assert found == pytest.approx(roc_auc_score(labels, scores, sample_weight=counts))


def test_interval_holds_the_estimate_and_narrows_with_more_data() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (100, 4000):
        labels = np.arange(count) % 2
        scores = rng.normal(size=count) + labels
        low, high = auroc_interval(labels, scores, seed=0)
        assert low < roc_auc_score(labels, scores) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_interval_is_seeded_and_independent_of_row_order() -> None:
    assert auroc_interval(LABELS, SCORES, seed=1) == auroc_interval(LABELS, SCORES, seed=1)
    order = np.random.default_rng(0).permutation(len(LABELS))
    assert auroc_interval(LABELS[order], SCORES[order], seed=1) == auroc_interval(LABELS, SCORES, seed=1)


def test_interval_of_much_data_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(300) % 2
    scores = np.random.default_rng(0).normal(size=300) + labels
    whole = auroc_interval(labels, scores, seed=0)
    monkeypatch.setattr(metrics, "_FLOATS_PER_CHUNK", 3_000)
    assert auroc_interval(labels, scores, seed=0) == pytest.approx(whole, abs=0.01)


def test_perfect_scores_have_the_interval_one() -> None:
    assert auroc_interval(LABELS, LABELS.astype(float), seed=0) == (1.0, 1.0)
