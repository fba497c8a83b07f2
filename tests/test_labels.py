from __future__ import annotations

import numpy as np
import pytest

from recipes.head_section import Head
from training.labels import LabelError, label_from, label_from_columns, label_matrix, names_in

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])
STARS = Head(name="stars", task="multiclass", class_names=["1", "2", "3", "4", "5"])
MIXED = Head(name="year", task="multiclass", class_names=["1", "2", "other"])
CAFE = Head(name="place", class_names=["street", "caf\u00e9"])
TAGS = Head(name="tags", task="multilabel", class_names=["gore", "nude"])


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", " nsfw ", "nsfw", np.int64(1), np.float32(1)])
def test_a_class_however_it_is_written(value) -> None:
    assert label_from(value, BINARY) == "nsfw"


@pytest.mark.parametrize("value", [None, "", "  ", float("nan"), np.float32("nan")])
def test_no_label(value) -> None:
    assert label_from(value, BINARY) is None
    assert label_from(value, TAGS) is None


@pytest.mark.parametrize("value", [2, -1, 0.5, "NSFW", "yes", [1], float("inf"), "1e400"])
def test_what_is_no_class_is_refused_with_its_value(value) -> None:
    with pytest.raises(LabelError, match="is neither 0 or 1 nor one of safe, nsfw"):
        label_from(value, BINARY)


@pytest.mark.parametrize("value", [3, 3.0, "3", "3.0", " 3 ", np.int64(3)])
def test_where_all_names_are_numbers_a_number_is_a_name(value) -> None:
    assert label_from(value, STARS) == "3"


@pytest.mark.parametrize("value", [0, "0", 6, 2.5, -1, "3 stars"])
def test_a_number_that_is_no_name_is_no_index_either(value) -> None:
    with pytest.raises(LabelError, match=r"label .* 1, 2, 3, 4, 5"):
        label_from(value, STARS)


def test_names_of_one_number_are_told_apart_by_their_text() -> None:
    years = Head(name="year", task="multiclass", class_names=["1", "01", "2"])
    assert [label_from(value, years) for value in ("01", "1", 2)] == ["01", "1", "2"]
    with pytest.raises(LabelError, match="label 1 is none of the class_names, which are numbers"):
        label_from(1, years)


def test_a_number_that_is_an_index_and_another_classs_name_is_refused() -> None:
    for value in (1, "1"):
        with pytest.raises(LabelError, match=r"name of one class and the index of another, '2'; in .* no number"):
            label_from(value, MIXED)
    assert label_from("other", MIXED) == "other"
    assert label_from(5, Head(name="a", class_names=["none", "5"])) == "5"
    assert label_from("1", Head(name="a", class_names=["none", "1"])) == "1"


def test_names_match_however_unicode_composes_them() -> None:
    assert label_from("cafe\u0301 ", CAFE) == "caf\u00e9"
    assert label_from(["cafe\u0301"], Head(name="t", task="multilabel", class_names=["caf\u00e9"])) == '["caf\\u00e9"]'


def test_another_case_is_refused_with_the_spelling() -> None:
    with pytest.raises(LabelError, match="upper and lower case differ: write 'nsfw'"):
        label_from("NSFW", BINARY)
    with pytest.raises(LabelError, match="write 'nude'"):
        label_from(["Nude"], TAGS)


@pytest.mark.parametrize("value", ["nan", "NULL", "None", "N/A"])
def test_a_word_for_nothing_is_refused_unless_a_class_has_that_name(value: str) -> None:
    for head in (BINARY, Head(name="taste", task="regression", class_names=["taste"])):
        with pytest.raises(LabelError, match="leave the label empty where there is none"):
            label_from(value, head)
    assert label_from("None", Head(name="a", class_names=["None", "some"])) == "None"


def test_a_decimal_comma_is_refused_with_the_point() -> None:
    with pytest.raises(LabelError, match=r"'6,5' is no finite number; write 6\.5"):
        label_from("6,5", Head(name="taste", task="regression", class_names=["taste"]))


def test_names_come_back_as_a_matrix() -> None:
    labels = [label_from(["nude"], TAGS), label_from([], TAGS), label_from_columns([1, "1"], TAGS)]
    assert labels == ['["nude"]', "[]", '["gore", "nude"]']
    np.testing.assert_array_equal(
        label_matrix([str(label) for label in labels], TAGS.class_names), [[0, 1], [0, 0], [1, 1]]
    )


@pytest.mark.parametrize("text", ["nude", "3", '{"nude": 1}', "[1]", "[" * 100_000])
def test_text_that_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(LabelError, match="is no list of names"):
        names_in(text)


def test_a_row_with_an_empty_column_has_no_label() -> None:
    assert label_from_columns([1, None], TAGS) is None
