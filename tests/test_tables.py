from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.head_section import Head
from training.datasets import samples_in
from training.errors import StepError
from training.sample import DataSet, Sample
from training.tables import Columns, read_table

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])
KINDS = Head(name="kind", task="multiclass", class_names=["photo", "drawing", "scan"])
TAGS = Head(name="tags", task="multilabel", class_names=["gore", "nude"])
TASTE = Head(name="taste", task="regression", class_names=["taste"])


def _read(table: Path, head: Head = BINARY, **columns: Any) -> list[Sample]:
    return samples_in(str(table), head, Columns(**columns)).samples


def _data(table: Path, head: Head = BINARY, **columns: Any) -> DataSet:
    return samples_in(str(table), head, Columns(**columns))


def _labels(path: Path, head: Head = BINARY, **columns: Any) -> dict[str, str | None]:
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


def test_a_repeated_row_counts_once_and_a_contradiction_is_a_failure(tmp_path: Path) -> None:
    assert _labels(_write(tmp_path / "l.csv", "path,label\na,safe\na,0\n")) == {"a": "safe"}
    data = _data(_write(tmp_path / "l.csv", "path,label\na,safe\nb,safe\na,nsfw\n"))
    assert [sample.key for sample in data.samples] == ["b"]
    [failure] = data.failures
    assert (failure.path, failure.code) == (str(tmp_path / "a"), "CONFLICTING_LABELS")
    assert failure.message == "labelled safe in l.csv row 2 and nsfw in l.csv row 4; remove one"
    with pytest.raises(StepError, match=r"no row can be used; the first: .*CONFLICTING_LABELS"):
        _read(_write(tmp_path / "l.csv", "path,label\na,safe\na,nsfw\n"))


def test_raters_vote_on_a_class_and_one_without_a_label_has_no_vote(tmp_path: Path) -> None:
    rows = "a,safe\na,nsfw\na,nsfw\nb,\nb,safe\nc,\nc,\nd,safe\n"
    data = _data(_write(tmp_path / "l.csv", f"path,label\n{rows}"))
    assert {sample.key: sample.label for sample in data.samples} == {"a": "nsfw", "b": "safe", "c": None, "d": "safe"}
    assert data.notes == ["labels: majority of 3 rows an image for 1 images, 1 of them not unanimous"]


def test_raters_of_a_value_are_averaged_and_their_spread_is_said(tmp_path: Path) -> None:
    rows = "a,4\na,5\na,9\nb,3\nb,3.5\nc,7\n"
    data = _data(_write(tmp_path / "l.csv", f"path,label\n{rows}"), TASTE)
    assert {sample.key: sample.label for sample in data.samples} == {"a": "6.0", "b": "3.25", "c": "7.0"}
    spread = "median spread (highest less lowest) 2.75"
    assert data.notes == [f"labels: mean of 2 to 3 raters an image for 2 images, {spread}"]


@pytest.mark.parametrize(
    ("rows", "code"), [("a,1,train,p\na,1,test,p\n", "CONFLICTING_SPLITS"), ("a,1,,p\na,1,,q\n", "CONFLICTING_GROUPS")]
)
def test_rows_of_one_image_that_part_it_are_a_failure(tmp_path: Path, rows: str, code: str) -> None:
    file = _write(tmp_path / "l.csv", f"path,label,fold,person\n{rows}b,0,val,r\n")
    data = _data(file, split="fold", group="person")
    assert [(sample.key, sample.split, sample.group) for sample in data.samples] == [("b", "validation", "r")]
    assert [failure.code for failure in data.failures] == [code]


def test_paths_of_windows_without_suffixes_and_of_other_machines_are_found(tmp_path: Path) -> None:
    for name in ("round/1.jpg", "round/2.png", "angular/1.jpg", "caf\u00e9.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    paths = ["round\\1.jpg", "C:\\photos\\round\\2.png", "angular/1", " round/1.jpg", "cafe\u0301.jpg", "gone\\3.jpg"]
    data = _data(_write(tmp_path / "l.csv", "path,label\n" + "".join(f"{path},1\n" for path in paths)))
    expected = ["round/1.jpg", "round/2.png", "angular/1.jpg", "caf\u00e9.jpg", "gone\\3.jpg"]
    assert [sample.path for sample in data.samples] == [tmp_path.resolve() / path for path in expected]
    assert "paths: 1 with backslashes" in data.notes
    assert "paths: 1 of another machine, by their last parts" in data.notes


def test_a_backslash_in_a_name_that_is_there_is_no_separator(tmp_path: Path) -> None:
    (tmp_path / "a\\b.jpg").touch()
    [sample] = _read(_write(tmp_path / "l.csv", "path,label\na\\b.jpg,1\n"))
    assert sample.path == tmp_path.resolve() / "a\\b.jpg"


def test_ids_are_found_below_an_image_root(tmp_path: Path) -> None:
    for name in ("x/101.jpg", "y/102.png", "y/101.txt", "x/7.jpg", "y/7.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    rows = [{"path": 101, "label": 1}, {"path": 102, "label": 0}, {"path": 7, "label": 1}]
    file = _written(tmp_path, ".parquet", rows)
    data = samples_in(str(file), BINARY, Columns(image_root=tmp_path / "images"))
    assert [(sample.key, sample.label) for sample in data.samples] == [("x/101.jpg", "nsfw"), ("y/102.png", "safe")]
    [failure] = data.failures
    assert failure.code == "AMBIGUOUS_NAME"
    assert "'7' may be x/7.jpg, y/7.jpg" in failure.message


def test_an_address_is_a_failure(tmp_path: Path) -> None:
    data = _data(_write(tmp_path / "l.csv", "path,label\nhttps://example.org/a.jpg,1\nb.jpg,0\n"))
    assert [(failure.path, failure.code) for failure in data.failures] == [("https://example.org/a.jpg", "NOT_LOCAL")]


def test_pictures_inside_a_parquet_file_are_read_and_its_names_are_the_labels(tmp_path: Path) -> None:
    images = [{"bytes": b"one", "path": "a.jpg"}, {"bytes": b"two", "path": None}, {"bytes": b"three", "path": "c.jpg"}]
    names = {"info": {"features": {"label": {"names": ["nsfw", "safe"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": images, "label": [0, 1, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table.slice(0, 1), tmp_path / "data" / "test-00000-of-00001.parquet")
    data = _data(tmp_path)
    assert [(s.key, s.label, s.split, s.read()) for s in data.samples] == [
        ("a.jpg", "nsfw", "test", b"one"),
        ("a.jpg", "nsfw", "train", b"one"),
        ("train-00000-of-00002/2", "safe", "train", b"two"),
        ("c.jpg", None, "train", b"three"),
    ]
    assert data.samples[3].stored_path == f"{tmp_path.resolve()}/data/train-00000-of-00002.parquet#3"


def test_a_hubs_metadata_names_the_files_beside_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in ("1.jpg", "2.jpg", "unnamed.jpg"):
            (tmp_path / split / name).touch()
        _write(tmp_path / split / "metadata.csv", "file_name,label\n1.jpg,nsfw\n2.jpg,safe\n")
    data = _data(tmp_path)
    assert [(s.path.relative_to(tmp_path.resolve()).as_posix(), s.label, s.split) for s in data.samples] == [
        ("test/1.jpg", "nsfw", "test"),
        ("test/2.jpg", "safe", "test"),
        ("train/1.jpg", "nsfw", "train"),
        ("train/2.jpg", "safe", "train"),
    ]
    assert data.passed_over == {"files that metadata.csv does not name": 2}


def test_nested_scores_are_read(tmp_path: Path) -> None:
    text = '{"ImageRecords": {"a/1.jpg": {"relative_filepath": "a/1.jpg", "score": 1.5}}, "Metadata": {}}'
    data = _data(_write(tmp_path / "scores.json", text), TASTE)
    assert [(sample.key, sample.label) for sample in data.samples] == [("a/1.jpg", "1.5")]
    assert data.notes == ["labels: the column score of scores.json"]


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
    with pytest.raises(StepError, match="row 2: fold '3' is not train, validation or test"):
        _read(_write(tmp_path / "l.csv", "path,label,fold\na,1,3\n"), split="fold")


def test_a_missing_and_an_unknown_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"labels\.csv: cannot be read: No such file"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(StepError, match=r"labels\.xls: not a table that can be read; known: \.parquet, \.csv"):
        read_table(tmp_path / "labels.xls")
