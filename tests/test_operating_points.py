from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from training.errors import StepError
from training.intervals import clopper_pearson
from training.operating_points import (
    choose_threshold,
    parse_point,
    precision_at_prevalence,
    realised,
)

SEPARATION = 2.0


def _sample(rng: np.random.Generator, positives: int, negatives: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two unit Gaussians, whose recall and false positive rate at any threshold are known."""
    labels = np.r_[np.ones(positives), np.zeros(negatives)]
    return labels, rng.normal(size=len(labels)) + labels * SEPARATION


def _true(threshold: float) -> dict[str, float]:
    return {"recall": float(norm.sf(threshold - SEPARATION)), "fpr": float(norm.sf(threshold))}


@pytest.mark.parametrize("text", ["recall>=0.99", "precision >= 0.95", " fpr<=0.001 ", "f1", "fpr<=1e-3"])
def test_the_grammar(text: str) -> None:
    point = parse_point(text)
    assert point.text == text.replace(" ", "")
    assert point.text.startswith(point.metric)


@pytest.mark.parametrize(
    "text", ["recall", "recall>0.9", "recall<=0.9", "fpr>=0.1", "recall>=1", "fpr<=0", "recall>=1.2.3", "f2", ""]
)
def test_what_is_no_operating_point_is_named_with_the_grammar(text: str) -> None:
    with pytest.raises(StepError) as error:
        parse_point(text)
    assert repr(text) in str(error.value)
    assert "recall>=X, precision>=X or fpr<=X" in str(error.value)


def test_thresholds_by_hand() -> None:
    labels = np.array([0] * 9 + [1] * 9)
    scores = np.r_[np.arange(9), np.arange(9) + 5] / 20
    # 8 of 9 positives pass at 6/20, which vouches for 8 / 10; 1 of 9 negatives passes at 8/20: 1 / 10.
    assert choose_threshold(parse_point("recall>=0.8"), labels, scores).threshold == 6 / 20
    assert choose_threshold(parse_point("recall>=0.9"), labels, scores).threshold == 5 / 20
    assert choose_threshold(parse_point("fpr<=0.1"), labels, scores).threshold == 8 / 20
    assert choose_threshold(parse_point("f1"), labels, scores).threshold == 5 / 20


@pytest.mark.parametrize(
    ("text", "metric"), [("recall>=0.99", "recall"), ("recall>=0.9", "recall"), ("fpr<=0.01", "fpr")]
)
def test_fresh_data_keeps_the_promise_and_the_interval_is_honest(text: str, metric: str) -> None:
    rng = np.random.default_rng(0)
    chosen = [choose_threshold(parse_point(text), *_sample(rng, 400, 900)) for _ in range(400)]
    realised_values = np.array([_true(point.threshold)[metric] for point in chosen])
    inside = [
        point.interval[0] <= value <= point.interval[1] for point, value in zip(chosen, realised_values, strict=True)
    ]
    assert 0.92 < np.mean(inside) < 0.98
    bound = parse_point(text).bound
    assert bound is not None
    assert realised_values.mean() == pytest.approx(bound, abs=3e-3)


def test_precision_holds_at_the_prevalence_wanted() -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        chosen = choose_threshold(parse_point("precision>=0.75"), *_sample(rng, 1000, 2000), prevalence=0.1)
        values.append(precision_at_prevalence(**_true(chosen.threshold), prevalence=0.1))
    assert np.mean(values) == pytest.approx(0.75, abs=0.02)


def test_f1_is_the_best_there_is() -> None:
    labels, scores = _sample(np.random.default_rng(2), 300, 700)
    chosen = choose_threshold(parse_point("f1"), labels, scores)
    values = [realised(labels, scores, threshold)["f1"]["value"] for threshold in scores[::20]]
    assert chosen.expected >= max(values)
    assert chosen.interval[0] < chosen.expected < chosen.interval[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recall>=0.99", "20 positives held out can vouch for recall>=0.9523 at best, it takes 99"),
        ("fpr<=0.001", "can vouch for, with a positive still passing, is fpr<=0.0244; it takes 999 negatives"),
        ("precision>=0.999", "the best precision that 20 positives and 40 negatives held out can vouch for"),
    ],
)
def test_out_of_reach_names_the_best(text: str, words: str) -> None:
    labels, scores = _sample(np.random.default_rng(3), 20, 40)
    with pytest.raises(StepError) as error:
        choose_threshold(parse_point(text), labels, scores)
    assert text in str(error.value)
    assert words in str(error.value)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=12, max_size=60))
def test_ties_never_break_the_promise_on_the_sample(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([label for label, _ in rows], float), np.array([score for _, score in rows], float)
    if labels.min() == labels.max():
        return
    for text in ("recall>=0.6", "fpr<=0.4"):
        point = parse_point(text)
        try:
            found = realised(labels, scores, choose_threshold(point, labels, scores).threshold)[point.metric]["value"]
        except StepError:
            continue
        assert found >= 0.6 if point.metric == "recall" else found <= 0.4 + 1 / (len(labels) - labels.sum())


def test_exact_intervals() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0, 0.30850), abs=1e-4)
    assert clopper_pearson(10, 10) == pytest.approx((0.69150, 1), abs=1e-4)
    assert clopper_pearson(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-4)


def test_precision_at_the_samples_own_prevalence_is_the_plain_one() -> None:
    labels, scores = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([9, 8, 1, 7, 2, 2, 2, 2.0])
    found = realised(labels, scores, 7)
    assert found["precision"]["value"] == pytest.approx(2 / 3)
    assert found["precision"]["interval_95"] == pytest.approx(list(clopper_pearson(2, 3)))
    rarer = realised(labels, scores, 7, prevalence=0.01)["precision"]
    assert rarer["value"] == pytest.approx((2 / 3 * 0.01) / (2 / 3 * 0.01 + 0.2 * 0.99))


def test_what_has_no_sample_is_none() -> None:
    found = realised(np.zeros(4), np.arange(4.0), 9)
    assert (found["recall"], found["precision"], found["f1"]) == (None, None, None)
    assert found["fpr"]["value"] == 0
