"""Figures of graded pictures."""

from __future__ import annotations

import numpy as np
import pytest

from training.grades import ab_interval, ab_of_choices, divider_of, figures_line, order_of, quick_figures
from training.metrics import regression_metrics


def _by_hand(grades: np.ndarray, scores: np.ndarray) -> tuple[int, float, int]:
    right, tied, pairs = 0.0, 0, 0
    for one in range(len(grades)):
        for other in range(one):
            if grades[one] == grades[other]:
                continue
            pairs += 1
            lead = (grades[one] - grades[other]) * (scores[one] - scores[other])
            tied += lead == 0
            right += lead > 0
    return pairs, right, tied


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_pairs_are_counted_exactly_with_and_without_ties(digits: int) -> None:
    rng = np.random.default_rng(digits)
    grades = rng.normal(size=60).round(digits)
    scores = (grades + rng.normal(size=60)).round(digits)
    order = order_of(grades, scores)
    assert (order.pairs, order.right, order.tied) == _by_hand(grades, scores)
    assert order.tied_grades == 60 * 59 // 2 - order.pairs


def test_constant_scores_are_chance_and_equal_grades_have_no_order() -> None:
    grades = np.arange(10.0)
    assert order_of(grades, np.zeros(10)).ab == 0.5
    assert order_of(np.ones(10), grades).ab is None
    assert ab_interval(np.ones(10), grades, order_of(np.ones(10), grades)) is None


def test_the_interval_of_ab_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = np.arcsin(0.7) / np.pi + 0.5  # of a normal pair with correlation 0.7
    held = 0
    for _ in range(200):
        grades = rng.normal(size=150)
        scores = 0.7 * grades + np.sqrt(1 - 0.49) * rng.normal(size=150)
        low, high = ab_interval(grades, scores, order_of(grades, scores)) or (0, 0)
        held += low <= truth <= high
    assert 180 <= held <= 198


def test_a_perfect_order_of_few_has_an_interval_with_a_width() -> None:
    grades = np.arange(12.0)
    low, high = ab_interval(grades, grades, order_of(grades, grades)) or (0, 0)
    assert low < 0.7
    assert high == 1


def test_given_choices_have_an_order_too() -> None:
    order = ab_of_choices(np.array([(0, 1), (1, 2), (0, 3)]), np.array([3.0, 2.0, 2.5, 3.0]))
    assert (order.pairs, order.right, order.tied) == (3, 1, 1)
    assert order.ab == 0.5


@pytest.mark.parametrize(
    ("setting", "grades", "divider"),
    [("median", [1, 2, 3, 9], 2.5), ("median", [1, 1, 1, 2, 5], 2), ("none", [1, 2], None), (4, [1, 2], 4)],
)
def test_the_divider_is_the_median_with_some_on_either_side(setting, grades, divider) -> None:
    assert divider_of(setting, np.array(grades, float)) == divider


def test_quick_figures_are_those_with_intervals() -> None:
    rng = np.random.default_rng(0)
    grades = rng.normal(size=80)
    scores = grades + rng.normal(size=80)
    full, quick = regression_metrics(grades, scores, 0, divider=0.1), quick_figures(grades, scores, 0.1)
    for name, value in quick.items():
        assert full[name] == pytest.approx(value)
        low, high = full[f"{name}_95_interval"]
        assert low <= full[name] <= high


def test_a_line_says_what_became_of_ties() -> None:
    grades = np.arange(20.0)
    line = figures_line("all", regression_metrics(grades, grades // 2, 0, divider=10))
    assert line.startswith("all: 20 pictures, mse ")
    assert "10 of 190 pairs have equal scores and count half" in line
    assert "accuracy 0.5 (" in line


@pytest.mark.parametrize(("scores", "right"), [([3.0, 4.0], 1), ([4.0, 3.0], 0)])
def test_two_pictures_are_one_pair(scores, right):
    """As the test part of a dozen graded pictures has them."""
    order = order_of(np.array([1.0, 2.0]), np.array(scores))
    assert (order.pairs, order.right, order.tied) == (1, right, 0)
