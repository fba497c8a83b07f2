from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from two_classes import two_classes

from recipes.head_section import Fit
from training.errors import StepError
from training.leakage import group_rows
from training.split import Split, saved_split, split_rows

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


def test_groups_go_to_one_side() -> None:
    labels = [0, 1] * 60
    groups = np.arange(120) // 3
    split = split_rows(np.array(labels), [f"{row:03d}" for row in range(120)], NAMES, 0.2, 0.15, 0, groups)
    held = [set(groups[rows]) for rows in split.parts().values()]
    assert sum(map(len, held)) == 40
    assert not len(split.left_out)


@given(data_sets(), st.integers(2, 20), st.integers(0, 100))
def test_any_groups_are_kept_together_or_refused(data, span, seed) -> None:
    labels, contents = data
    names = sorted(set(contents))
    group_of = {name: group for group, name in enumerate(np.random.default_rng(seed).permutation(names))}
    groups = np.array([group_of[content] // span for content in contents])
    try:
        split = split_rows(np.array(labels), contents, NAMES, 0.2, 0.15, seed, groups)
    except StepError:
        return  # a class in fewer than three groups, as tested below
    held = [set(groups[rows]) for rows in split.parts().values()]
    assert sum(map(len, held)) == len(set(groups))
    assert sum(map(len, split.parts().values())) == len(labels)


def test_a_big_group_goes_where_there_is_room() -> None:
    groups = np.array([0] * 60 + list(range(1, 41)))
    split = split_rows(np.zeros(100, int), [f"{row:03d}" for row in range(100)], ["one"], 0.2, 0.15, 0, groups)
    assert [len(rows) for rows in split.parts().values()] == [65, 15, 20]


def test_several_labels_a_row_are_stratified_by_the_rarest() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((1000, 3)) < (0.5, 0.1, 0.02)).astype(int)
    split = split_rows(labels, [f"{row:04d}" for row in range(1000)], ["a", "b", "c"], 0.2, 0.15, 0)
    for column in range(3):
        total = labels[:, column].sum()
        assert abs(labels[split.test, column].sum() - 0.2 * total) <= max(1, 0.05 * total)


def test_without_labels_only_the_fractions_hold() -> None:
    split = split_rows(None, [f"{row:03d}" for row in range(100)], [], 0.2, 0.1, 0)
    assert [len(rows) for rows in split.parts().values()] == [70, 10, 20]


def test_no_near_duplicate_pair_is_on_two_sides() -> None:
    data = two_classes(3000)
    groups = group_rows(data.sha256, data.embedding, 0.97)
    split = split_rows(data.label, data.sha256, ["a", "b"], 0.2, 0.15, 0, groups.ids)
    side = np.empty(3000, int)
    for number, rows in enumerate(split.parts().values()):
        side[rows] = number
    near = np.triu(data.embedding @ data.embedding.T >= 0.97, 1)
    assert near.sum() == 60
    assert not (near & (side[:, None] != side[None])).any()
    without = split_rows(data.label, data.sha256, ["a", "b"], 0.2, 0.15, 0)
    sides = np.select([np.isin(np.arange(3000), rows) for rows in without.parts().values()], [0, 1, 2])
    assert (near & (sides[:, None] != sides[None])).any(), "without groups this data would leak"


def _saved(folder: Path, count: int, fit: Fit, **more) -> tuple[dict[str, str], Split]:
    """content → side, of `count` rows."""
    contents = [f"{row:03d}" for row in range(count)]
    split = saved_split(folder, np.arange(count) % 2, contents, NAMES, fit, **more)
    return {contents[row]: part for part, rows in split.parts().items() for row in rows.tolist()}, split


def test_a_saved_split_is_the_drawn_one(tmp_path: Path) -> None:
    _, saved = _saved(tmp_path, 100, Fit())
    drawn = split_rows(np.arange(100) % 2, [f"{row:03d}" for row in range(100)], NAMES, 0.2, 0.15, 0)
    for part, rows in saved.parts().items():
        np.testing.assert_array_equal(rows, drawn.parts()[part])


def test_a_saved_split_stays_and_new_rows_join_it(tmp_path: Path) -> None:
    before, _ = _saved(tmp_path, 100, Fit())
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert _saved(tmp_path, 100, Fit())[0] == before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files, "nothing is added for nothing"
    after, _ = _saved(tmp_path, 200, Fit())
    assert {content: after[content] for content in before} == before
    assert list(after.values()).count("test") == 40
    assert list(after.values()).count("validation") == 30
    assert all(path.read_bytes() == content for path, content in files.items())
    assert _saved(tmp_path, 200, Fit())[0] == after


def test_other_settings_have_another_split(tmp_path: Path) -> None:
    first, _ = _saved(tmp_path, 100, Fit())
    other, _ = _saved(tmp_path, 100, Fit(seed=1))
    assert first != other
    assert _saved(tmp_path, 100, Fit())[0] == first
    assert _saved(tmp_path, 100, Fit(learning_rate=0.1))[0] == first


def test_a_new_row_follows_its_near_duplicate(tmp_path: Path) -> None:
    before, _ = _saved(tmp_path, 100, Fit(), groups=np.arange(100))
    after, _ = _saved(tmp_path, 150, Fit(), groups=np.array([*range(100), *range(50)]))
    assert all(after[f"{row:03d}"] == before[f"{row - 100:03d}"] for row in range(100, 150))


def test_a_new_row_between_two_sides_leaves_only_the_held_out_one(tmp_path: Path) -> None:
    before, _ = _saved(tmp_path, 100, Fit(), groups=np.arange(100))
    train, test = (next(int(row) for row, part in before.items() if part == name) for name in ("train", "test"))
    groups = np.arange(101)
    groups[[train, 100]] = groups[test]
    after, split = _saved(tmp_path, 101, Fit(), groups=groups)
    assert split.left_out.tolist() == [train, 100]
    assert after[f"{test:03d}"] == "test"
    assert _saved(tmp_path, 100, Fit(), groups=np.arange(100))[0] == before


def test_a_prescribed_side_is_taken(tmp_path: Path) -> None:
    prescribed = ["test"] * 30 + [None] * 70
    sides, _ = _saved(tmp_path, 100, Fit(), prescribed=prescribed)
    assert {part for row, part in sides.items() if int(row) < 30} == {"test"}
    assert {part for row, part in sides.items() if int(row) >= 30} == {"train", "validation"}


def test_an_unknown_prescribed_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"the data sets prescribe \['dev'\], expected train, validation, test"):
        _saved(tmp_path, 10, Fit(), prescribed=["dev"] + [None] * 9)


def test_a_class_that_the_saved_sides_leave_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="class 'angular' has no images in train"):
        _saved(tmp_path, 100, Fit(), prescribed=["test", None, "validation", None] * 25)
