"""The result table as CSV, JSON, JSON lines and Parquet, and the embedding files."""

from __future__ import annotations

import csv
import io
import json
import os
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsieve import Columns, Head
from clipsieve.exceptions import OutputRefused
from clipsieve.outputs import (
    ROW_WRITERS,
    TABLE_SUFFIXES,
    check_output,
    replacing,
    rows_from_table,
    table_from_rows,
    write_table,
)
from clipsieve.scoring import embedding_schema
from clipsieve.sorting import Order, sort_column, sorted_tables

SCHEMA = Columns((Head("demo", ("ring",), ("disc", "ring")),)).schema()
NAMES = SCHEMA.names

ROWS = [
    ("a.jpg", 0.25, 0, "disc", "allow", None, "demo-00"),
    ('we "quote", and\nbreak\r.jpg', 1e-05, 1, "ring", "block", None, "demo-00"),
    ("cmd()|.jpg", None, None, None, None, "NOT_AN_IMAGE: a, b", None),
    ("日本.jpg", 1.0, 1, None, "block", None, "demo-00"),
]
DICTS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]


def _written(suffix: str, rows: list[tuple], part: int = 3) -> bytes:
    file = io.BytesIO()
    tables = [table_from_rows(rows[start : start + part], SCHEMA) for start in range(0, len(rows), part)]
    write_table(file, suffix, tables, SCHEMA, len(rows))
    return file.getvalue()


def test_columns_are_the_contract():
    assert NAMES == ["image_path", "probability", "prediction", "class_name", "decision", "error", "model_version"]
    assert [str(each.type) for each in SCHEMA][1:3] == ["float", "int32"]


def test_csv_reads_back():
    read = list(csv.DictReader(io.StringIO(_written(".csv", ROWS).decode(), newline="")))
    assert read == [{key: "" if v is None else str(v) for key, v in row.items()} for row in DICTS]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=5))
def test_csv_keeps_any_path_and_makes_no_formula(paths):
    text = _written(".csv", [(path, *[None] * 6) for path in paths]).decode()
    read = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert [each.removeprefix("./") for each in read] == [each.removeprefix("./") for each in paths]
    assert not any(each.startswith(("=", "+", "-", "@", "\t", "\r")) for each in read)


def test_path_that_looks_like_a_formula_is_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.jpg").touch()
    text = _written(".csv", [("=1+1.jpg", *[None] * 6)]).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["image_path"] == "./=1+1.jpg"
    assert os.path.samefile(row["image_path"], "=1+1.jpg")


def test_json_reads_back():
    assert json.loads(_written(".json", ROWS)) == DICTS


def test_json_without_rows_is_an_empty_array():
    assert json.loads(_written(".json", [])) == []


def test_json_lines_read_back():
    lines = _written(".jsonl", ROWS).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == DICTS
    assert lines[-1] == ""


def test_parquet_reads_back():
    table = pq.read_table(io.BytesIO(_written(".parquet", ROWS)))
    assert table.schema == SCHEMA
    assert list(rows_from_table(table)) == ROWS


def test_parquet_without_rows_has_the_columns():
    assert pq.read_table(io.BytesIO(_written(".parquet", []))).schema.names == NAMES


def test_parquet_parts_are_gathered_into_row_groups(monkeypatch):
    monkeypatch.setattr("clipsieve.outputs._ROW_GROUP", 4)
    parquet = pq.ParquetFile(io.BytesIO(_written(".parquet", ROWS * 5, part=2)))
    assert [parquet.metadata.row_group(each).num_rows for each in range(parquet.num_row_groups)] == [4] * 5


def test_rows_are_written_as_they_come():
    file = io.BytesIO()
    with closing(ROW_WRITERS[".csv"](file, NAMES)) as writer:
        writer.write(ROWS[:1])
        assert file.getvalue().count(b"\n") == 2


@pytest.mark.parametrize("top", [None, 3, 100])
def test_order_by_a_column(top):
    values = [0.5, None, 0.9, 0.1, 0.7]
    tables = [pa.table({"path": pa.array(["x"]), "score": pa.array([each], pa.float32())}) for each in values]
    for reverse, values in [(False, [0.9, 0.7, 0.5, 0.1, None]), (True, [0.1, 0.5, 0.7, 0.9, None])]:
        (ordered,) = sorted_tables(iter(tables), Order("score", top, reverse))
        expected = [pytest.approx(each, abs=1e-6) if each else None for each in values]
        assert ordered["score"].to_pylist() == expected[: top or 5]


def test_column_to_sort_by():
    names = ["image_path", "a_score", "b_score", "error"]
    columns = [sort_column(names, ["a_score", "b_score"], by) for by in ("score", "path", "b_score")]
    assert columns == ["a_score", "image_path", "b_score"]
    with pytest.raises(ValueError, match="cannot sort by 'c'; use score, path or one of image_path"):
        sort_column(names, ["a_score"], "c")


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
            check_output(tmp_path / name, TABLE_SUFFIXES, overwrite=False)
    check_output(tmp_path / "there.csv", TABLE_SUFFIXES, overwrite=True)
    check_output(tmp_path / "NEW.CSV", TABLE_SUFFIXES, overwrite=False)


def test_output_gets_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with replacing(path, lambda partial: None) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_output_is_kept_under_another_name(tmp_path):
    kept = []

    def interrupted():
        with replacing(tmp_path / "out.csv", kept.append) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [partial.read_bytes() for partial in kept] == [b"half"]
    assert kept[0].suffix == ".csv"
    assert not (tmp_path / "out.csv").exists()


EMBEDDINGS = [
    ("a.jpg", np.array([1, 2], np.float32), None),
    ("b.jpg", None, "EMPTY: no bytes"),
]


def _embeddings_written(suffix: str, rows: list[tuple]) -> io.BytesIO:
    file = io.BytesIO()
    tables = [table_from_rows([row], embedding_schema()) for row in rows]
    write_table(file, suffix, tables, embedding_schema(), len(rows))
    file.seek(0)
    return file


def test_npy_has_a_row_per_image_and_nan_for_a_failed_one():
    np.testing.assert_array_equal(np.load(_embeddings_written(".npy", EMBEDDINGS)), [[1, 2], [np.nan, np.nan]])
    np.testing.assert_array_equal(np.load(_embeddings_written(".npy", EMBEDDINGS[::-1])), [[np.nan, np.nan], [1, 2]])


def test_npy_without_embeddings():
    assert np.load(_embeddings_written(".npy", EMBEDDINGS[1:])).shape == (1, 0)


def test_embedding_parquet_reads_back():
    assert pq.read_table(_embeddings_written(".parquet", EMBEDDINGS)).to_pylist() == [
        {"image_path": "a.jpg", "embedding": [1.0, 2.0], "error": None},
        {"image_path": "b.jpg", "embedding": None, "error": "EMPTY: no bytes"},
    ]
