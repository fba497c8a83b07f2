from __future__ import annotations

import numpy as np
import pytest
from two_classes import two_classes

from training import neighbours
from training.errors import StepError
from training.leakage import group_rows
from training.neighbours import Neighbours, unit_vectors


def _sums(count: int) -> list[str]:
    return [f"{row:064x}" for row in range(count)]


def _circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _same(ids: np.ndarray) -> list[set[int]]:
    """The groups of more than one row."""
    groups = [set(np.flatnonzero(ids == group).tolist()) for group in np.unique(ids)]
    return [group for group in groups if len(group) > 1]


def test_equal_contents_are_one_group_without_a_cosine() -> None:
    groups = group_rows(["a", "b", "a", "c", "b", "a"], np.zeros((6, 2), np.float32), None)
    assert _same(groups.ids) == [{0, 2, 5}, {1, 4}]
    assert groups.counts() == {
        "exact_duplicate_groups": 2,
        "exact_duplicate_rows": 5,
        "near_duplicate_groups": 0,
        "near_duplicate_rows": 0,
    }


def test_near_rows_are_one_group_also_by_way_of_others() -> None:
    groups = group_rows(_sums(6), _circle(0, 10, 20, 90, 170, 180), np.cos(np.radians(11)))
    assert _same(groups.ids) == [{0, 1, 2}, {4, 5}]
    assert (groups.exact_groups, groups.near_groups, groups.near_rows) == (0, 2, 5)


def test_copies_of_near_rows_are_counted_as_rows() -> None:
    groups = group_rows(["a", "b", "b", "c"], _circle(0, 5, 5, 90), 0.99)
    assert _same(groups.ids) == [{0, 1, 2}]
    assert (groups.exact_groups, groups.exact_rows, groups.near_groups, groups.near_rows) == (1, 2, 1, 3)


def test_length_does_not_matter() -> None:
    rows = _circle(0, 1, 90) * np.array([[1], [50], [3]], np.float32)
    assert _same(group_rows(_sums(3), rows, 0.99).ids) == [{0, 1}]


def test_a_cosine_of_one_still_joins_equal_embeddings() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    rows[21:] = rows[1:20]
    assert len(_same(group_rows(_sums(40), rows, 1.0).ids)) == 19


def test_rows_of_zeros_are_near_to_nothing() -> None:
    assert _same(group_rows(_sums(3), np.zeros((3, 4), np.float32), 0.5).ids) == []


def test_one_group_of_more_than_half_is_refused() -> None:
    rows = np.concatenate([_circle(*np.linspace(0, 1, 12)), _circle(90, 100, 110, 120)])
    with pytest.raises(
        StepError, match=r"12 of 16 different images .* 0\.97, .* a higher value in the recipe, or null"
    ):
        group_rows(_sums(16), rows, 0.97)
    assert group_rows(_sums(16), rows, None).near_groups == 0


def test_a_few_images_may_all_be_alike() -> None:
    assert _same(group_rows(_sums(4), _circle(0, 1, 2, 90), 0.97).ids) == [{0, 1, 2}]


def test_many_equal_files_are_no_reason_to_refuse() -> None:
    sums = ["a"] * 30 + _sums(12)
    rows = np.concatenate([_circle(*[0] * 30), _circle(*range(5, 365, 30))])
    assert group_rows(sums, rows, 0.9999).exact_rows == 30


def test_a_row_that_is_not_finite_is_named() -> None:
    rows = _circle(0, 90, 180)
    rows[1, 0] = np.nan
    with pytest.raises(StepError, match="first in row 1"):
        group_rows(_sums(3), rows, 0.9)


def test_the_planted_near_duplicates_are_found_and_no_others() -> None:
    data = two_classes(3000)
    groups = group_rows(data.sha256, data.embedding, 0.97)
    copies = np.flatnonzero(data.copy_of >= 0)
    assert len(copies) == 60
    assert sorted(map(sorted, _same(groups.ids))) == sorted(sorted((c, data.copy_of[c])) for c in copies.tolist())


def test_the_index_for_many_rows_finds_what_the_exact_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data = two_classes(6000, copied=0.1, copy_cosine=0.972)
    exact = group_rows(data.sha256, data.embedding, 0.97)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 100)
    cells = group_rows(data.sha256, data.embedding, 0.97)
    assert exact.near_groups == 600
    assert cells.near_groups >= 0.995 * exact.near_groups
    assert all(len(group) == 2 for group in _same(cells.ids))


def test_pairs_come_once_with_their_cosine() -> None:
    [(rows, others, cosines)] = Neighbours(unit_vectors(_circle(0, 60, 90, 95))).pairs(0.8)
    found = sorted(zip(rows.tolist(), others.tolist(), cosines.round(4).tolist(), strict=True))
    assert found == [(1, 2, pytest.approx(0.866)), (1, 3, pytest.approx(0.8192)), (2, 3, pytest.approx(0.9962))]


def test_nearest_leaves_the_row_itself_out() -> None:
    nearest = Neighbours(unit_vectors(_circle(0, 60, 90))).nearest(2)
    np.testing.assert_allclose(nearest, [[0.5, 0], [0.866, 0.5], [0.866, 0]], atol=1e-3)
