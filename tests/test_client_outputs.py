"""The result table as CSV, JSON, JSON lines and Parquet, and the embedding files."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsieve import Embedding, Head, ImageRejected, Score
from clipsieve.outputs import (
    COLUMNS,
    ROW_WRITERS,
    OutputRefused,
    Row,
    check_output,
    embedding_writer,
    replacing,
    row_from_score,
)

HEAD = Head("demo", ("ring",), ("disc", "ring"))

ROWS = [
    Row("a.jpg", 0.25, 0, "disc", None, "demo-00"),
    Row('we "quote", and\nbreak\r.jpg', 1e-05, 1, "ring", None, "demo-00"),
    Row("=cmd()|.jpg", None, None, None, "NOT_AN_IMAGE: a, b", None),
    Row("日本.jpg", 1.0, 1, None, None, "demo-00"),
]


def _written(suffix: str, rows: list[Row]) -> bytes:
    file = io.BytesIO()
    with closing(ROW_WRITERS[suffix](file)) as writer:
        for row in rows:
            writer.write(row)
    return file.getvalue()


def _as_dict(row: Row) -> dict:
    return {name: getattr(row, name) for name in COLUMNS}


def test_columns_are_the_contract():
    assert COLUMNS == ("image_path", "probability", "prediction", "class_name", "error", "model_version")


def test_csv_reads_back():
    read = list(csv.DictReader(io.StringIO(_written(".csv", ROWS).decode(), newline="")))
    assert read == [{key: "" if v is None else str(v) for key, v in _as_dict(row).items()} for row in ROWS]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=5))
def test_csv_keeps_any_path(paths):
    text = _written(".csv", [Row(path) for path in paths]).decode()
    assert [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:] == paths


def test_json_reads_back():
    assert json.loads(_written(".json", ROWS)) == [_as_dict(row) for row in ROWS]


def test_json_without_rows_is_an_empty_array():
    assert json.loads(_written(".json", [])) == []


def test_json_lines_read_back():
    lines = _written(".jsonl", ROWS).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [_as_dict(row) for row in ROWS]
    assert lines[-1] == ""


def test_parquet_reads_back(monkeypatch):
    monkeypatch.setattr("clipsieve.outputs._PARQUET_ROWS", 3)
    table = pq.read_table(io.BytesIO(_written(".parquet", ROWS)))
    assert tuple(table.column_names) == COLUMNS
    assert [str(table.schema.field(name).type) for name in ("probability", "prediction")] == ["float", "int32"]
    expected = [_as_dict(row) for row in ROWS]
    for row in expected:
        row["probability"] = None if row["probability"] is None else float(np.float32(row["probability"]))
    assert table.to_pylist() == expected


def test_parquet_without_rows_has_the_columns():
    assert tuple(pq.read_table(io.BytesIO(_written(".parquet", []))).column_names) == COLUMNS


def _score(probability: float, decision: int) -> Score:
    return Score("a.jpg", np.array([probability], np.float32), np.array([decision], np.int32), "demo-00")


@pytest.mark.parametrize(
    ("probability", "decision", "threshold", "prediction"),
    [(0.4, 0, None, 0), (0.4, 1, None, 1), (0.4, 2, None, 1), (0.4, 1, 0.5, 0), (0.6, 0, 0.5, 1), (0.1, 0, 0.1, 1)],
)
def test_prediction_is_the_decision_or_the_threshold(probability, decision, threshold, prediction):
    row = row_from_score(_score(probability, decision), HEAD, threshold)
    assert (row.probability, row.prediction) == (probability, prediction)
    assert row.class_name == HEAD.class_names[prediction]


def test_head_without_class_names_leaves_the_cell_empty():
    assert row_from_score(_score(0.9, 1), Head("demo", ("ring",), ()), None).class_name is None


def test_failed_image_has_only_its_path_and_error():
    row = row_from_score(Score("a\udcff.jpg", error=ImageRejected("EMPTY", "no bytes")), HEAD, None)
    assert row == Row("a\\udcff.jpg", error="EMPTY: no bytes")


def test_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    for name, message in [
        ("a.xlsx", "unknown suffix '.xlsx'; use one of .csv"),
        ("plain", "unknown suffix ''"),
        ("no/such/a.csv", "does not exist"),
        ("there.csv", "--overwrite"),
        ("folder.csv", "is a folder"),
    ]:
        with pytest.raises(OutputRefused, match=message):
            check_output(tmp_path / name, tuple(ROW_WRITERS), overwrite=False)
    check_output(tmp_path / "there.csv", tuple(ROW_WRITERS), overwrite=True)
    check_output(tmp_path / "NEW.CSV", tuple(ROW_WRITERS), overwrite=False)


def test_output_gets_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with replacing(path, lambda partial: None) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_output_is_kept_under_another_name(tmp_path):
    told = []

    def interrupted():
        with replacing(tmp_path / "out.csv", told.append) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [partial.read_bytes() for partial in told] == [b"half"]
    assert told[0].suffix == ".csv"
    assert not (tmp_path / "out.csv").exists()


EMBEDDINGS = [
    Embedding("a.jpg", np.array([1, 2], np.float32)),
    Embedding("b.jpg", error=ImageRejected("EMPTY", "no bytes")),
]


def _embeddings_written(suffix: str, count: int) -> io.BytesIO:
    file = io.BytesIO()
    with closing(embedding_writer(suffix, file, count, 2)) as writer:
        for embedding in EMBEDDINGS:
            writer.write(embedding)
    file.seek(0)
    return file


def test_npy_has_a_row_per_image_and_nan_for_a_failed_one():
    np.testing.assert_array_equal(np.load(_embeddings_written(".npy", 2)), [[1, 2], [np.nan, np.nan]])


def test_npy_of_an_interrupted_run_can_be_loaded():
    assert np.load(_embeddings_written(".npy", 3)).shape == (3, 2)


def test_embedding_parquet_reads_back():
    assert pq.read_table(_embeddings_written(".parquet", 2)).to_pylist() == [
        {"image_path": "a.jpg", "embedding": [1.0, 2.0], "error": None},
        {"image_path": "b.jpg", "embedding": None, "error": "EMPTY: no bytes"},
    ]
