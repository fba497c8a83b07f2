from __future__ import annotations

import numpy as np
import pytest

from recipes.schema import Head
from training.labels import LabelError, label_from, label_from_columns, label_matrix, names_in

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])
NUMBERED = Head(name="year", task="multiclass", class_names=["1", "0", "2"])
TAGS = Head(name="tags", task="multilabel", class_names=["gore", "nude"])


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", " nsfw ", "nsfw", np.int64(1), np.float32(1)])
def test_a_class_however_it_is_written(value) -> None:
    assert label_from(value, BINARY) == "nsfw"


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_no_label(value) -> None:
    assert label_from(value, BINARY) is None
    assert label_from(value, TAGS) is None


@pytest.mark.parametrize("value", [2, -1, 0.5, "NSFW", "yes", [1], float("inf"), "1e400"])
def test_what_is_no_class_is_refused_with_its_value(value) -> None:
    with pytest.raises(LabelError, match="is neither 0 or 1 nor one of safe, nsfw"):
        label_from(value, BINARY)


def test_a_class_name_goes_before_an_index() -> None:
    assert [label_from(value, NUMBERED) for value in ("0", "1", 0)] == ["0", "1", "1"]


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
