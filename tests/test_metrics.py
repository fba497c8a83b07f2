from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import norm, pearsonr, spearmanr
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from training import metrics
from training.calibrate import ece
from training.intervals import auroc_interval, clopper_pearson, combined, wilson
from training.metrics import binary_metrics, regression_metrics, task_metrics

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


def test_figures_are_sklearns_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.3).astype(float)
    scores = np.round(np.clip(rng.normal(0.4, 0.2, 500) + labels * 0.2, 0, 1), 1)
    counts = metrics.counts_of(labels, scores)
    assert metrics.auroc(counts)[0] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.average_precision(counts)[0] == pytest.approx(average_precision_score(labels, scores))
    assert metrics.brier_of(counts)[0] == pytest.approx(brier_score_loss(labels, scores))
    assert metrics.ece_of(counts)[0] == pytest.approx(ece(scores, labels))


def test_points_of_the_curves_by_hand() -> None:
    counts = metrics.counts_of(LABELS, SCORES)
    assert metrics.recall_at_precision(counts, 1.0)[0] == 0.5
    assert metrics.recall_at_precision(counts, 0.8)[0] == 1
    assert metrics.fpr_at_recall(counts, 1.0)[0] == 0.25
    assert metrics.fpr_at_recall(counts, 0.5)[0] == 0


@given(st.lists(st.integers(0, 5), min_size=4, max_size=40), st.integers(0, 1000))
def test_each_resample_is_sklearns_weighted_auroc(values: list[int], seed: int) -> None:
    scores, labels = np.array(values, float), np.arange(len(values)) % 2
    drawn = metrics.resampled(metrics.counts_of(labels, scores), seed, 1)
    rows = [(score, label) for score in drawn.score for label in (1, 0)]
    weights = np.stack([drawn.positives[0], drawn.negatives[0]], axis=1).ravel()
    expected = roc_auc_score([label for _, label in rows], [score for score, _ in rows], sample_weight=weights)
    assert metrics.auroc(drawn)[0] == pytest.approx(expected)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, held = norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(100):
        labels = np.arange(400) % 2
        low, high = binary_metrics(labels, rng.normal(size=400) + labels, 0.5, seed, probabilities=False)[
            "auroc_95_interval"
        ]
        held += low <= truth <= high
    assert held >= 88


def test_grouping_scores_hardly_moves_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(3000) < 0.4).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=3000) + labels)))
    grouped = binary_metrics(labels, scores, 0.5, 0)
    monkeypatch.setattr(metrics, "_MOST_GROUPS", 10_000)
    exact = binary_metrics(labels, scores, 0.5, 0)
    assert grouped["auroc"] == exact["auroc"]
    for name in ("auroc", "average_precision", "accuracy", "brier"):
        key = f"{name}_95_interval"
        assert grouped[key] == pytest.approx(exact[key], abs=4e-3)


def test_interval_narrows_with_more_data() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (100, 4000):
        labels = np.arange(count) % 2
        found = binary_metrics(labels, rng.normal(size=count) + labels, 0.5, 0, probabilities=False)
        low, high = found["auroc_95_interval"]
        assert low < found["auroc"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_at_another_prevalence_precision_changes_and_auroc_does_not() -> None:
    plain, rare = (binary_metrics(LABELS, SCORES, 0.5, 0, prevalence=share) for share in (None, 0.1))
    assert rare["auroc"] == pytest.approx(plain["auroc"])
    assert rare["precision"] == pytest.approx(0.75 * 0.1 / (0.75 * 0.1 + 0.25 * 0.9))
    assert binary_metrics(LABELS, SCORES, 0.5, 0, prevalence=0.5)["accuracy"] == pytest.approx(plain["accuracy"])


def test_several_labels_have_a_mean_and_one_that_is_missing_a_reason() -> None:
    targets = np.array([[0, 0], [0, 0], [1, 0], [1, 0]])
    scores = np.array([[0.1, 0.2], [0.6, 0.2], [0.5, 0.9], [0.9, 0.9]])
    found = task_metrics("multilabel", ["a", "b"], targets, scores, [0.5, 0.5], seed=0, probabilities=True)
    assert found["labels"]["a"]["auroc"] == found["macro"]["auroc"] == pytest.approx(0.75)
    assert "no positives" in found["labels"]["b"]["reason"]
    assert found["accuracy"] == 0.25
    json.dumps(found, allow_nan=False)


def test_classes_have_a_confusion_matrix() -> None:
    targets, scores = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 2, 1]]
    found = task_metrics("multiclass", ["a", "b", "c"], targets, scores, [0.5] * 3, seed=0, probabilities=True)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert found["accuracy"] == 0.75


def test_regression_figures_are_scipys() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    scores = values + rng.normal(size=200)
    found = regression_metrics(values, scores, seed=0)
    assert found["mse"] == pytest.approx(np.mean((values - scores) ** 2))
    assert found["pearson"] == pytest.approx(pearsonr(values, scores)[0])
    assert found["spearman"] == pytest.approx(spearmanr(values, scores)[0])
    for name in ("mse", "pearson", "spearman"):
        low, high = found[f"{name}_95_interval"]
        assert low < found[name] < high


def test_a_constant_score_has_no_correlation_and_stays_json() -> None:
    found = regression_metrics(np.arange(20.0), np.ones(20), seed=0)
    assert (found["pearson"], found["spearman_95_interval"]) == (None, None)
    json.dumps(found, allow_nan=False)


def test_regression_is_compared_with_the_mean() -> None:
    values = np.random.default_rng(0).normal(1300, 50, 300)
    found = regression_metrics(values, np.full(300, values.mean()) + 1e-9 * values, seed=0)
    assert found["mse_of_mean"] == pytest.approx(values.var())
    assert found["r2"] == pytest.approx(0, abs=1e-6)
    assert regression_metrics(values, np.zeros(300), seed=0)["r2"] < -100
    low, high = regression_metrics(values, values + 10, seed=0)["r2_95_interval"]
    assert low < 1 - 100 / values.var() < high


# ---- few rows ----


@pytest.mark.parametrize("auroc", [0.7, 0.9, 0.99])
@pytest.mark.parametrize("positives", [1, 3, 10])
def test_an_aurocs_interval_is_honest_on_few_positives(positives: int, auroc: float) -> None:
    rng, rounds, held = np.random.default_rng(positives), 120, 0
    labels = np.r_[np.ones(positives), np.zeros(100)]
    for _ in range(rounds):
        scores = rng.normal(size=len(labels)) + labels * norm.ppf(auroc) * np.sqrt(2)
        found = binary_metrics(labels, scores, 0.5, 0, probabilities=False)
        low, high = found["auroc_95_interval"]
        assert low <= found["auroc"] <= high
        held += low <= auroc <= high
    assert held / rounds >= 0.9


@pytest.mark.parametrize("positives", [1, 3, 10])
def test_no_interval_collapses_where_the_classes_separate(positives: int) -> None:
    labels = np.r_[np.ones(positives), np.zeros(40)]
    found = binary_metrics(labels, 0.1 + 0.8 * labels, 0.5, 0)
    for name in ("auroc", "average_precision", "recall", "precision", "accuracy", "recall_at_precision_0.95"):
        low, high = found[f"{name}_95_interval"]
        assert found[name] == high == 1
        assert low < 1 - 0.5 / (positives + 41), name
    assert found["recall_95_interval"] == pytest.approx(list(clopper_pearson(positives, positives)))
    assert found["fpr_at_recall_0.99_95_interval"][1] == 1, "few positives cannot show a recall of 0.99"


def test_newcombes_interval_is_nearly_symmetric_and_has_the_figure() -> None:
    low, high = auroc_interval(0.75, 20, 30)
    assert low < 0.75 < high
    assert auroc_interval(0.25, 20, 30) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert (auroc_interval(0, 1, 1)[0], auroc_interval(1, 1, 1)[1]) == (0, 1)


def test_wilson_by_hand_and_shares_combined() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(1, 10)[1] == pytest.approx(1)
    assert combined([0.5, 0.5], [(0.2, 0.8), (0.1, 0.9)], [0.5, 0.5]) == pytest.approx((0.25, 0.75))


def _classes(rng: np.random.Generator, count: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and probabilities of classes that are calibrated."""
    scores = softmax(rng.normal(size=(count, labels)) * 1.5, axis=1)
    drawn = (rng.random(count)[:, None] > scores.cumsum(axis=1)).sum(axis=1)
    return np.eye(labels)[np.minimum(drawn, labels - 1)], scores


def test_the_mean_over_classes_has_an_interval_of_its_own_that_holds_the_figure() -> None:
    rng = np.random.default_rng(0)
    names = [str(label) for label in range(9)]
    targets, scores = _classes(rng, 400, 9)
    found = task_metrics("multiclass", names, targets, scores, [0.5] * 9, seed=0, probabilities=True)["macro"]
    for name in metrics.MACRO:
        low, high = found[f"{name}_95_interval"]
        assert low <= found[name] <= high, name
        assert high - low > 0.001, name


def test_the_macro_auroc_is_held_about_as_often_as_it_says() -> None:
    names = [str(label) for label in range(4)]
    large, scores = _classes(np.random.default_rng(1), 200_000, 4)
    truth = np.mean([roc_auc_score(large[:, at], scores[:, at]) for at in range(4)])
    held = 0
    for seed in range(24):
        targets, scores = _classes(np.random.default_rng(seed + 2), 80, 4)
        found = task_metrics("multiclass", names, targets, scores, [0.5] * 4, seed=seed, probabilities=True)
        low, high = found["macro"]["auroc_95_interval"]
        held += low <= truth <= high
    assert held >= 21
