"""The columns of a table of scores, and the row of each result."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from clipsieve import (
    ClipsieveError,
    Columns,
    Head,
    HeadScore,
    ImageRejected,
    Score,
    Threshold,
    UnknownThreshold,
    VersionChanged,
    rows_schema,
)
from clipsieve.scoring import Versions

TWO = (Threshold(0.3, "high recall"), Threshold(0.8, "low fpr"))
ONE = (Threshold(0.5, "fixed"),)

BINARY = Head("nsfw", ("nsfw",), ("safe", "nsfw"), thresholds=(TWO,))
TASTE = Head("taste", ("taste",), ("taste",), task="regression", thresholds=((),))
STYLE = Head("style", ("photo", "drawing"), ("photo", "drawing"), task="multiclass", thresholds=(ONE, ONE))
TAGS = Head("tags", ("cat", "dog"), ("cat", "dog"), task="multilabel", thresholds=(TWO, ONE))


def _score(head: Head, scores: list[float], decisions: list[int]) -> HeadScore:
    values, passed = np.array(scores, np.float32), np.array(decisions, np.int32)
    return HeadScore(values, passed, head.class_of(values, passed), f"{head.name}-00")


def _row(columns: Columns, *scores: HeadScore) -> dict:
    heads = {head.name: score for head, score in zip(columns.heads, scores, strict=True)}
    return dict(zip(columns.names, columns.row("a.jpg", Score("a.jpg", heads)), strict=True))


def test_a_deviation_is_a_column_beside_its_score():
    ranking = Head("taste", ("taste",), ("taste",), task="ranking", thresholds=(ONE,), gives_deviation=True)
    columns = Columns((ranking,))
    score = HeadScore(np.array([5.25], np.float32), np.array([1], np.int32), None, "taste-00", deviation=0.5)
    assert _row(columns, score) == {
        "image_path": "a.jpg",
        "taste_score": 5.25,
        "taste_deviation": 0.5,
        "taste_decision": "block",
        "error": None,
        "model_version": "taste-00",
    }
    assert columns.score_names == ["taste_score"]
    assert columns.schema().field("taste_deviation").type == "float"


def test_every_kind_of_head_in_one_table():
    columns = Columns((BINARY, TASTE, STYLE, TAGS))
    row = _row(
        columns,
        _score(BINARY, [0.4], [1]),
        _score(TASTE, [5.25], [0]),
        _score(STYLE, [0.3, 0.7], [0, 1]),
        _score(TAGS, [0.9, 0.6], [2, 1]),
    )
    assert row == {
        "image_path": "a.jpg",
        "nsfw_score": 0.4,
        "nsfw_decision": "review",
        "nsfw_class_name": "nsfw",
        "taste_score": 5.25,
        "style_photo_score": 0.3,
        "style_drawing_score": 0.7,
        "style_class_name": "drawing",
        "tags_cat_score": 0.9,
        "tags_dog_score": 0.6,
        "tags_cat_decision": "block",
        "tags_dog_decision": "block",
        "error": None,
        "model_version": "nsfw-00 taste-00 style-00 tags-00",
    }
    assert columns.schema().names == list(row)
    assert columns.score_names == [name for name in row if name.endswith("_score")]
    assert columns.schema() == rows_schema((BINARY, TASTE, STYLE, TAGS))


@pytest.mark.parametrize("head", [TASTE, STYLE, TAGS])
def test_one_head_that_is_not_binary_has_a_wide_table(head):
    assert Columns((head,)).names[1].startswith(head.name)


@pytest.mark.parametrize(
    ("thresholds", "bands"),
    [
        (TWO, ["allow", "review", "block"]),
        (ONE, ["allow", "block"]),
        ((*TWO, Threshold(0.9, "sure")), ["allow", "review", "review", "block"]),
    ],
)
def test_bands_follow_the_number_of_thresholds(thresholds, bands):
    head = Head("nsfw", ("nsfw",), ("safe", "nsfw"), thresholds=(thresholds,))
    columns = Columns((head, TASTE))
    decisions = [
        _row(columns, _score(head, [0.5], [passed]), _score(TASTE, [1], [0]))["nsfw_decision"]
        for passed in range(len(bands))
    ]
    assert decisions == bands


def test_decision_of_a_server_that_does_not_say_its_thresholds_is_their_number():
    head = Head("nsfw", ("nsfw",), ("safe", "nsfw"))
    row = _row(Columns((head, TASTE)), _score(head, [0.5], [1]), _score(TASTE, [1], [0]))
    assert row["nsfw_decision"] == "1"


def test_a_regression_with_thresholds_decides():
    head = Head("taste", ("taste",), ("taste",), task="regression", thresholds=((Threshold(5, "good"),),))
    assert _row(Columns((head,)), _score(head, [6], [1]))["taste_decision"] == "block"


PLAIN = Columns((BINARY,))


@pytest.mark.parametrize(
    ("probability", "decision", "threshold", "prediction"),
    [(0.4, 0, None, 0), (0.4, 1, None, 1), (0.4, 2, None, 1), (0.4, 1, 0.5, 0), (0.6, 0, 0.5, 1), (0.1, 0, 0.1, 1)],
)
def test_prediction_is_the_decision_or_the_threshold(probability, decision, threshold, prediction):
    row = _row(Columns((BINARY,), threshold), _score(BINARY, [probability], [decision]))
    assert (row["probability"], row["prediction"]) == (probability, prediction)
    assert (
        row["decision"]
        == (("allow", "block") if threshold is not None else ("allow", "review", "block"))[
            prediction if threshold is not None else decision
        ]
    )
    assert row["class_name"] == BINARY.class_names[prediction]


@pytest.mark.parametrize(("name", "predictions"), [("high recall", [0, 1, 1]), ("low fpr", [0, 0, 1])])
def test_prediction_at_an_operating_point(name, predictions):
    columns = Columns((BINARY,), operating_point=name)
    rows = [_row(columns, _score(BINARY, [0.5], [passed])) for passed in (0, 1, 2)]
    assert [row["prediction"] for row in rows] == predictions
    assert [row["decision"] for row in rows] == [("allow", "block")[each] for each in predictions]
    assert [row["class_name"] for row in rows] == [BINARY.class_names[each] for each in predictions]


def test_operating_point_of_several_labels_leaves_allow_or_block():
    two = Head("tags", ("cat", "dog"), (), task="multilabel", thresholds=(TWO, TWO[::-1]))
    row = _row(Columns((two,), operating_point="low fpr"), _score(two, [0.5, 0.5], [1, 1]))
    assert (row["tags_cat_decision"], row["tags_dog_decision"]) == ("allow", "block")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": (TAGS,), "operating_point": "low fpr"}, "no operating point 'low fpr' for 'dog'; it has: fixed"),
        ({"heads": (Head("x", ("x",), ()),), "operating_point": "a"}, "does not say which operating points"),
        ({"heads": (BINARY,), "operating_point": "low fpr", "threshold": 0.5}, "cannot both decide"),
        ({"heads": (TAGS,), "threshold": 0.5}, "for one binary head, these are tags .multilabel."),
        ({"heads": (BINARY, TASTE), "threshold": 0.5}, "nsfw .binary., taste .regression."),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UnknownThreshold, match=message):
        Columns(**options)


def test_columns_of_one_name_are_refused():
    clash = Head("nsfw_x", ("nsfw_x",), (), task="regression")
    other = Head("nsfw", ("x", "y"), (), task="multilabel")
    with pytest.raises(ClipsieveError, match="two columns would be called 'nsfw_x_score'"):
        Columns((clash, other))


def test_head_without_class_names_leaves_the_cell_empty():
    head = Head("demo", ("ring",), ())
    assert _row(Columns((head,)), _score(head, [0.9], [1]))["class_name"] is None


@pytest.mark.parametrize("columns", [PLAIN, Columns((BINARY, TAGS)), Columns((BINARY,), key="key")])
def test_failed_image_has_only_its_path_and_error(columns):
    row = columns.row("a\udcff.jpg", Score("a\udcff.jpg", error=ImageRejected("EMPTY", "no bytes")))
    cells = {name: cell for name, cell in zip(columns.names, row, strict=True) if cell is not None}
    assert cells == {columns.key: "a\\udcff.jpg", "error": "EMPTY: no bytes"}


def test_key_of_a_shard_makes_wide_columns():
    assert Columns((BINARY,), key="key").names == [
        "key", "nsfw_score", "nsfw_decision", "nsfw_class_name", "error", "model_version",
    ]  # fmt: skip


def test_head_from_the_servers_parameters():
    parameters = {
        "task": "binary",
        "labels": '["nsfw"]',
        "class_names": '["safe", "nsfw"]',
        "thresholds": json.dumps([[asdict(threshold) for threshold in TWO]]),
    }
    assert Head.from_parameters("nsfw", parameters) == BINARY
    assert Head.from_parameters("old", {"labels": '["a", "b"]'}).task == "multilabel"


def test_versions():
    versions = Versions(None, changes_allowed=False)
    versions.check("a")
    versions.check("")  # a row with an error has none
    with pytest.raises(VersionChanged, match="from a to b"):
        versions.check("b")
    Versions("a", changes_allowed=True).check("b")
