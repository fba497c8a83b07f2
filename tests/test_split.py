from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import StepError
from training.split import split_rows

NAMES = ["angular", "round"]


def _split(labels, contents, test=0.2, validation=0.15, seed=0):
    return split_rows(np.array(labels), contents, NAMES, test, validation, seed)


@st.composite
def data_sets(draw):
    """(labels, contents): at least three different contents per class, some of them several times."""
    copies = [draw(st.lists(st.integers(1, 3), min_size=3, max_size=40)) for _ in NAMES]
    rows = [(label, f"{label}-{n}") for label in (0, 1) for n, count in enumerate(copies[label]) for _ in range(count)]
    rows = draw(st.permutations(rows))
    return [label for label, _ in rows], [content for _, content in rows]


@given(data_sets(), st.floats(0.05, 0.5), st.floats(0.05, 0.45), st.integers(0, 100))
def test_parts_are_disjoint_whole_and_share_no_content(data, test, validation, seed) -> None:
    labels, contents = data
    split = _split(labels, contents, test, validation, seed)
    assert sorted(np.concatenate(list(split.parts().values())).tolist()) == list(range(len(labels)))
    held = [{contents[row] for row in rows} for rows in split.parts().values()]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]
    for rows in split.parts().values():
        assert {labels[row] for row in rows} == {0, 1}


def test_fractions_hold_in_each_class() -> None:
    labels = [0] * 300 + [1] * 40
    split = _split(labels, [str(row) for row in range(340)])
    counts = {name: np.bincount(np.array(labels)[rows]).tolist() for name, rows in split.parts().items()}
    assert counts == {"train": [195, 26], "validation": [45, 6], "test": [60, 8]}


def test_same_seed_same_split() -> None:
    labels, contents = [0, 1] * 50, [f"{row}" for row in range(100)]
    first, again, other = (_split(labels, contents, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.test, again.test)
    assert first.test.tolist() != other.test.tolist()


def test_split_follows_content_and_not_row_order() -> None:
    labels, contents = [0, 1] * 50, [f"{row:03d}" for row in range(100)]
    forward = _split(labels, contents)
    backward = _split(labels[::-1], contents[::-1])
    assert {contents[row] for row in forward.test} == {contents[::-1][row] for row in backward.test}


@pytest.mark.parametrize(("count", "noun"), [(1, "image"), (2, "images")])
def test_too_few_images_are_refused(count: int, noun: str) -> None:
    with pytest.raises(StepError, match=f"class 'round' has {count} different {noun} in the store.*at least 3"):
        _split([0] * 5 + [1] * count, [str(row) for row in range(5 + count)])


def test_copies_do_not_count_as_images() -> None:
    with pytest.raises(StepError, match="class 'round' has 1 different image"):
        _split([0] * 5 + [1] * 5, list("abcde") + ["f"] * 5)


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(StepError, match=r"test_fraction 0\.6 and fit\.validation_fraction 0\.4 leave nothing"):
        _split([0, 1] * 10, [str(row) for row in range(20)], test=0.6, validation=0.4)
