"""Which picture comes next: the queues, and the pairs that teach most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reviews import write_scores
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clipsieve.exceptions import InputRefused, PictureGone
from clipsieve.review.answers import Answers
from clipsieve.review.pairs import next_pair
from clipsieve.review.pictures import Pictures, pictures_in_folder, pictures_in_table
from clipsieve.review.queues import Known, Queue, Sort, order_of
from clipsieve.review.session import Review, Setting

SCORES = np.array([0.9, 0.1, 0.55, np.nan, 0.4, 0.8], np.float32)


def _known(answers: dict[int, float] | None = None, graded: bool = False, groups=None, scores=SCORES) -> Known:
    values, answered = np.full(len(scores), np.nan, np.float32), np.zeros(len(scores), bool)
    for place, answer in (answers or {}).items():
        values[place], answered[place] = answer, True
    return Known(scores, 0.5, answered, values, graded, groups)


def _places(known: Known, queue: Queue, sort: Sort = "highest") -> list[int]:
    return order_of(known, queue, sort).places.tolist()


def test_all_pictures_stand_by_score_and_those_without_one_last() -> None:
    assert _places(_known(), "all") == [0, 5, 2, 4, 1, 3]
    assert _places(_known(), "all", "lowest") == [1, 4, 2, 5, 0, 3]
    assert _places(_known(), "all", "near") == [2, 4, 5, 0, 1, 3]
    assert _places(_known(), "all", "name") == [0, 1, 2, 3, 4, 5]


def test_the_uncertain_are_unanswered_and_near_the_threshold() -> None:
    assert _places(_known({2: 1}), "uncertain") == [4, 5, 0, 1]
    assert _places(_known({2: 1, 0: 0}), "unanswered", "name") == [1, 3, 4, 5]


def test_disagreeing_answers_come_by_how_far_the_score_is() -> None:
    assert _places(_known({0: 0, 1: 0, 2: 0, 4: 1, 5: 1, 3: 1}), "disagreeing") == [0, 4, 2]
    assert "agrees" in order_of(_known({5: 1}), "disagreeing").note
    grades = np.array([3, 8, 5, np.nan], np.float32)
    assert _places(_known({0: 4, 1: 2, 2: 5.2, 3: 9}, True, scores=grades), "disagreeing") == [1, 0]


def test_near_duplicates_stand_together_and_contradictions_first() -> None:
    groups = np.array([0, 1, 0, -1, 1, 1], np.int32)
    assert _places(_known(groups=groups), "duplicates") == [1, 4, 5, 0, 2]
    assert _places(_known({0: 1, 2: 0}, groups=groups), "duplicates") == [0, 2, 1, 4, 5]
    assert "group" in order_of(_known(), "duplicates").note


def test_queues_that_need_scores_say_so() -> None:
    known = _known(scores=np.full(3, np.nan, np.float32))
    for queue in ("uncertain", "disagreeing"):
        assert "needs scores" in order_of(known, queue).note
    assert _places(known, "unanswered", "name") == [0, 1, 2]


def test_pairs_are_near_in_score_and_hang_together() -> None:
    """After one comparison a picture none is alone, all are joined, and most pairs were near."""
    count = 200
    scores = np.random.default_rng(0).random(count)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        pair = next_pair(count, pairs, scores)
        assert pair is not None
        assert pair[0] != pair[1]
        assert {*pair} not in [{*other} for other in pairs]
        pairs.append(pair)
    one, other = np.array(pairs).T
    assert set(one) | set(other) == set(range(count))
    groups, _ = connected_components(coo_array((np.ones(count), (one, other)), (count, count)), directed=False)
    assert groups == 1
    distances = np.abs(scores[one] - scores[other])
    assert np.median(distances) < 0.1  # of two drawn at random: 0.29
    assert np.bincount([*one, *other]).max() <= 8


def test_pairs_end_and_passed_ones_do_not_come_again() -> None:
    scores = np.full(3, np.nan)
    passed = {frozenset((0, 1))}
    seen = []
    while (pair := next_pair(3, seen, scores, passed)) is not None:
        seen.append(pair)
    assert sorted(sorted(pair) for pair in seen) == [[0, 2], [1, 2]]
    assert next_pair(3, [], scores, left_out={1, 2}) is None
    assert next_pair(1, [], np.array([1.0])) is None


def test_without_scores_the_comparisons_order_the_pictures() -> None:
    pair = next_pair(4, [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3)], np.full(4, np.nan))
    assert pair is not None
    assert {*pair} == {1, 2}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def _review(pictures: Pictures, folder: Path, **more) -> Review:
    return Review(pictures, Answers(folder), Setting("test"), **more)


def test_a_table_brings_classes_thresholds_groups_and_labels(files: list[Path], tmp_path: Path) -> None:
    review = _review(pictures_in_table(write_scores(tmp_path / "t.csv", files, [0.9, 0.2, 0.6, 0.4]), Path()), tmp_path)
    state = review.state()
    assert state["classNames"] == ("keep", "delete")
    assert not state["graded"]
    assert review.order("duplicates", "highest", None, "label").places.tolist() == [0, 1]
    review.answer(0, "label", "keep")
    assert review.order("disagreeing", "highest", None, "label").places.tolist() == [0]
    assert review.order("uncertain", "highest", None, "label").places.tolist()[0] in (2, 3)
    assert [row["label"] for row in review.rows([0, 1], None)] == ["keep", None]


def test_a_folder_without_scores_can_be_answered(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.heic").touch()
    pictures, note = pictures_in_folder(tmp_path)
    assert ".heic" in note
    review = _review(pictures, tmp_path / "out")
    assert review.class_names() == ("keep", "delete")
    with pytest.raises(InputRefused, match="none of keep, delete"):
        review.answer(0, "label", "other")
    with pytest.raises(InputRefused, match="grade from 1 to 10"):
        review.answer(0, "grade", "11")
    with pytest.raises(InputRefused, match="--recipe"):
        review.train()
    review.answer(0, "grade", "10")
    assert review.state()["counts"] == {"label": 0, "grade": 1, "pair": 0}


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.heic").touch()
    with pytest.raises(InputRefused, match=r"holds no pictures .*1 \.heic"):
        pictures_in_folder(tmp_path)


def test_a_picture_that_is_gone_gets_no_answer_and_no_pair(files: list[Path], tmp_path: Path) -> None:
    review = _review(pictures_in_folder(tmp_path)[0], tmp_path)
    files[1].unlink()
    with pytest.raises(PictureGone, match=r"1\.jpg is no longer there"):
        review.answer(1, "label", "keep")
    assert not (tmp_path / "labels.csv").exists()
    assert review.rows([1], None)[0]["gone"]
    for _ in range(3):
        pair = review.pair(None)
        assert pair is not None
        assert 1 not in pair
        review.choose(*pair)
    assert review.pair(None) is None


def test_new_scores_keep_the_numbers_of_pictures(files: list[Path], tmp_path: Path) -> None:
    """A table in another order, with one picture more and one less."""
    pictures = pictures_in_folder(tmp_path)[0]
    more = tmp_path / "more.jpg"
    table = write_scores(tmp_path / "t.csv", [files[3], more, files[0]], [0.1, 0.9, 0.7])
    pictures.take(pictures_in_table(table, Path()))
    assert [Path(path).name for path in pictures.paths] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "more.jpg"]
    np.testing.assert_allclose(pictures.scores[0].values, [0.7, np.nan, np.nan, 0.1, 0.9], rtol=1e-6)
    assert pictures.groups is not None
    assert (pictures.groups >= 0).tolist() == [False, False, False, True, True]
    assert pictures.groups[3] == pictures.groups[4]
