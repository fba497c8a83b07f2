from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.schema import Head
from training.datasets import samples_in
from training.errors import StepError
from training.sample import Sample
from training.tables import Columns, read_table

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])
KINDS = Head(name="kind", task="multiclass", class_names=["photo", "drawing", "scan"])
TAGS = Head(name="tags", task="multilabel", class_names=["gore", "nude"])
TASTE = Head(name="taste", task="regression", class_names=["taste"])


def _read(table: Path, head: Head = BINARY, **columns: str) -> list[Sample]:
    return samples_in(str(table), head, Columns(**columns)).samples


def _labels(path: Path, head: Head = BINARY, **columns: str) -> dict[str, str | None]:
    return {sample.key: sample.label for sample in _read(path, head, **columns)}


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _written(folder: Path, suffix: str, rows: list[dict]) -> Path:
    path = folder / f"labels{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        _write(path, "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")
    elif suffix == ".json":
        _write(path, json.dumps(rows))
    else:
        _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_kind_of_table_says_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [{"path": "a/1.jpg", "label": "nsfw"}, {"path": "2.jpg", "label": "safe"}, {"path": "3.jpg", "label": "1"}]
    samples = _read(_written(tmp_path, suffix, rows))
    assert [(sample.key, sample.label) for sample in samples] == [
        ("a/1.jpg", "nsfw"),
        ("2.jpg", "safe"),
        ("3.jpg", "nsfw"),
    ]
    assert samples[0].path == (tmp_path / "a" / "1.jpg").resolve()


def test_numbers_are_class_indexes(tmp_path: Path) -> None:
    rows = [{"path": "a", "label": 0}, {"path": "b", "label": 1}, {"path": "c", "label": True}]
    assert list(_labels(_written(tmp_path, ".jsonl", rows)).values()) == ["safe", "nsfw", "nsfw"]
    assert _labels(_write(tmp_path / "k.csv", "path,label\na,2\nb,photo\n"), KINDS) == {"a": "scan", "b": "photo"}
    assert _labels(_write(tmp_path / "f.csv", "path,label\na,1.0\n")) == {"a": "nsfw"}


def test_an_object_of_paths_is_a_table(tmp_path: Path) -> None:
    assert _labels(_write(tmp_path / "scores.json", '{"a.jpg": 6.5, "b.jpg": 3}'), TASTE) == {
        "a.jpg": "6.5",
        "b.jpg": "3.0",
    }


def test_an_empty_label_is_no_label(tmp_path: Path) -> None:
    assert _labels(_write(tmp_path / "l.csv", "path,label\na,\nb,safe\n")) == {"a": None, "b": "safe"}


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    file = _write(tmp_path / "l.csv", "file,class,fold\na,1,test\nb,0,\n")
    samples = _read(file, path="file", label="class", split="fold")
    assert [(s.key, s.label, s.split) for s in samples] == [("a", "nsfw", "test"), ("b", "safe", None)]


def test_image_path_is_found_by_itself_and_a_bom_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfimage_path,label\r\na.jpg,safe\r\n")
    assert _labels(tmp_path / "l.csv") == {"a.jpg": "safe"}


def test_several_labels_are_a_list_or_a_column_each(tmp_path: Path) -> None:
    wanted = {"a": '["gore", "nude"]', "b": "[]", "c": '["nude"]'}
    lists = [{"path": "a", "label": ["nude", "gore"]}, {"path": "b", "label": []}, {"path": "c", "label": ["nude"]}]
    assert _labels(_written(tmp_path, ".jsonl", lists), TAGS) == wanted
    assert _labels(_written(tmp_path, ".parquet", lists), TAGS) == wanted
    assert _labels(_write(tmp_path / "c.csv", "path,nude,gore\na,1,1\nb,0,0\nc,1,0\n"), TAGS) == wanted


def test_a_repeated_row_counts_once_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    assert _labels(_write(tmp_path / "l.csv", "path,label\na,safe\na,0\n")) == {"a": "safe"}
    with pytest.raises(StepError, match=r"'a' is labelled safe in l\.csv row 2 and nsfw in l\.csv row 4"):
        _read(_write(tmp_path / "l.csv", "path,label\na,safe\nb,safe\na,nsfw\n"))


@pytest.mark.parametrize(
    ("name", "text", "head", "words"),
    [
        ("l.csv", "path,class\na,safe\n", BINARY, "no column 'label'; found: path, class.*--label-column"),
        ("l.csv", "photo,label\na,safe\n", BINARY, "no column 'path'; found: photo, label.*--path-column"),
        ("l.csv", "path,gore\na,1\n", TAGS, "no column 'nude'; found: path, gore"),
        ("l.csv", "path,label\na,safe\nb,2\n", BINARY, r"l.csv row 3 \(b\): label '2' is neither 0 or 1 nor one of"),
        ("l.csv", "path,label\na,0.5\n", BINARY, "label '0.5' is neither 0 or 1"),
        ("l.csv", "path,label\na,maybe\n", KINDS, "label 'maybe' is neither 0 to 2 nor one of photo, drawing, scan"),
        ("l.csv", "path,gore,nude\na,1,3\n", TAGS, "row 2 .*nude is '3', expected 0 or 1"),
        ("l.jsonl", '{"path": "a", "label": ["rude"]}\n', TAGS, "label 'rude' is not one of gore, nude"),
        ("l.csv", "path,label\na,nan\n", TASTE, "label 'nan' is no finite number"),
        ("l.csv", "path,label\na,safe\nb\n", BINARY, "row 3 .* does not have the header's 2 fields"),
        ("l.csv", "path,label\na,safe,9\n", BINARY, "row 2 .* does not have the header's 2 fields"),
        ("l.csv", "path,label\n", BINARY, "has no rows"),
        ("l.csv", "path,label\n,safe\n", BINARY, "row 2: path '' is no path; name an image"),
        ("l.csv", "", BINARY, "no column 'path'; found: none"),
        ("l.json", '[{"path": "a"', BINARY, "l.json: not valid JSON"),
        ("l.json", "3", BINARY, "expected an array of objects, or an object of path: label"),
        ("l.jsonl", '{"path": "a", "label": 1}\n{"path"\n', BINARY, "l.jsonl: row 2 not valid JSON"),
        ("l.jsonl", "[1, 2]\n", BINARY, "row 1 is .*expected an object"),
        ("l.parquet", "PAR1 and no more", BINARY, "l.parquet: not a readable parquet table"),
    ],
)
def test_a_bad_table_is_refused_with_its_row(tmp_path: Path, name: str, text: str, head: Head, words: str) -> None:
    with pytest.raises(StepError, match=words) as error:
        _read(_write(tmp_path / name, text), head)
    assert str(tmp_path / name) in str(error.value)


def test_a_parquet_cut_short_is_refused(tmp_path: Path) -> None:
    file = _written(tmp_path, ".parquet", [{"path": str(n), "label": n % 2} for n in range(500)])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StepError, match=r"labels\.parquet: not a readable parquet table"):
        _read(file)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(StepError, match=r"not UTF-8 text .* at byte 11"):
        _read(tmp_path / "l.csv")


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="row 2: fold 'dev' is not train, validation or test"):
        _read(_write(tmp_path / "l.csv", "path,label,fold\na,1,dev\n"), split="fold")


def test_a_missing_and_an_unknown_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"labels\.csv: cannot be read: No such file"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(StepError, match=r"labels\.xls: not a table that can be read; known: \.parquet, \.csv"):
        read_table(tmp_path / "labels.xls")
