"""`clipsieve decide`: other thresholds over the scores that are there."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_cli

PLAIN = """image_path,probability,prediction,class_name,decision,error,model_version
a.jpg,0.1,0,safe,allow,,nsfw-1
"b,c.jpg",0.3,0,safe,allow,,nsfw-1
d.jpg,0.79999995,1,nsfw,block,,nsfw-1
e.jpg,,,,,UNREADABLE: gone,
f.jpg,0.8,1,nsfw,block,,nsfw-1
"""


def _rows(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture
def plain(tmp_path) -> Path:
    (tmp_path / "scores.csv").write_text(PLAIN)
    return tmp_path / "scores.csv"


def test_decisions_by_two_thresholds(plain, tmp_path):
    out = tmp_path / "out.csv"
    result = run_cli("decide", plain, "--threshold", 0.8, "--threshold", 0.3, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = _rows(out)
    assert [row["decision"] for row in rows] == ["allow", "review", "review", "", "block"]
    assert [row["prediction"] for row in rows] == ["0", "1", "1", "", "1"]
    assert [row["class_name"] for row in rows] == ["safe", "nsfw", "nsfw", "", "nsfw"]
    before = _rows(plain)
    for name in ("image_path", "probability", "error", "model_version"):
        assert [row[name] for row in rows] == [row[name] for row in before]
    assert result.stderr.splitlines()[-1] == (
        "5 rows: 1 allow, 2 review, 1 block, 1 without a score; 2 changed (1 allow → review, 1 block → review)"
    )


def test_without_an_output_it_only_counts(plain):
    result = run_cli("decide", plain, "--threshold", 0.2)
    assert "5 rows: 1 allow, 3 block, 1 without a score; 1 changed (1 allow → block)" in result.stderr
    assert _rows(plain)[1]["decision"] == "allow"


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_a_table_without_decisions_gets_them(tmp_path, suffix):
    old = "image_path,probability,prediction,class_name,error,model_version\na.jpg,0.5,1,nsfw,,nsfw-1\n"
    (tmp_path / "old.csv").write_text(old)
    out = tmp_path / f"out.{suffix}"
    assert run_cli("decide", tmp_path / "old.csv", "--threshold", 0.4, "--out", out).exit_code == 0
    [row] = _rows(out)
    assert list(row) == ["image_path", "probability", "prediction", "class_name", "decision", "error", "model_version"]
    assert (row["decision"], float(row["probability"])) == ("block", 0.5)


def test_one_head_of_several(tmp_path):
    rows = {
        "key": ["a", "b"],
        "nsfw_score": pa.array([0.2, 0.9], pa.float32()),
        "nsfw_decision": ["allow", "block"],
        "nsfw_class_name": ["safe", "nsfw"],
        "tags_cat_score": pa.array([0.6, 0.1], pa.float32()),
        "tags_cat_decision": ["block", "allow"],
        "style_photo_score": pa.array([0.6, 0.1], pa.float32()),
        "style_class_name": ["photo", "drawing"],
        "error": pa.array([None, None], pa.string()),
    }
    pq.write_table(pa.table(rows), table := tmp_path / "a.parquet")
    for head, decisions in (("nsfw", ["block", "block"]), ("tags_cat", ["block", "allow"])):
        out = tmp_path / f"{head}.parquet"
        assert run_cli("decide", table, "--threshold", 0.2, "--head", head, "--out", out).exit_code == 0
        assert [row[f"{head}_decision"] for row in _rows(out)] == decisions
        assert pq.read_schema(out).equals(pq.read_schema(table))
    assert [row["nsfw_class_name"] for row in _rows(tmp_path / "nsfw.parquet")] == ["nsfw", "nsfw"]
    for head, message in (
        (None, "scores of several, nsfw, tags_cat, style_photo; choose with --head"),
        ("dogs", "no column dogs_score; there are scores of: nsfw, tags_cat, style_photo"),
        ("style_photo", "the class of a multiclass head is that of its highest score"),
    ):
        result = run_cli("decide", table, "--threshold", 0.2, *(["--head", head] if head else []))
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_outputs_that_cannot_be_are_refused(plain, tmp_path):
    assert "is the table itself" in run_cli("decide", plain, "--threshold", 0.2, "--out", plain).stderr
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    result = run_cli("decide", plain, "--threshold", 0.2, "--out", tmp_path / "mine.csv", "--overwrite")
    assert (result.exit_code, "was not written by clipsieve" in result.stderr) == (2, True)
    (tmp_path / "bad.csv").write_text("image_path,probability,error\na.jpg,much,\n")
    result = run_cli("decide", tmp_path / "bad.csv", "--threshold", 0.2, "--out", tmp_path / "out.csv")
    assert (result.exit_code, "probability is 'much', expected a number" in result.stderr) == (2, True)
    assert not list(tmp_path.glob(".*"))


def test_grades_keep_their_words(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text(
        "image_path,taste_score,taste_decision,error,model_version\na.jpg,6.5,good,,t-1\nb.jpg,3,bad,,t-1\n"
    )
    result = run_cli("decide", table, "--threshold", 3, "--threshold", 7, "--out", tmp_path / "out.csv")
    assert [row["taste_decision"] for row in _rows(tmp_path / "out.csv")] == ["fair", "fair"]
    assert result.stderr.splitlines()[-1] == "2 rows: 2 fair; 2 changed (1 bad → fair, 1 good → fair)"
