"""The tables that `clipsieve report` reads and the page it writes; test_report_page.py opens it in a browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from clipsieve import text_from_path
from clipsieve.cli.report import report
from clipsieve.exceptions import OutputRefused, TableError
from clipsieve.passed_over import PassedOver
from clipsieve.report.page import ReportOptions, write_report
from clipsieve.report.table import choose_rows, read_scores
from clipsieve.results import Threshold
from clipsieve.run_record import RunRecord, ScoreFacts, write_record
from tests.pictures import jpeg

HOSTILE = [
    "</script><script>window.hacked=1</script>.jpg",
    "<!--<script>.jpg",
    '"><img src=x onerror=window.hacked=1>.jpg',
    "two\nlines\r&amp;'quotes'.jpg",
    "bidi\u202egpj.exe",
    "\u2028\u2029.jpg",
    "=1+1,comma.jpg",
]

CLASSIC = [
    {"image_path": "a.jpg", "probability": 0.1, "prediction": 0, "class_name": "disc", "error": None},
    {"image_path": "b.jpg", "probability": 0.9, "prediction": 1, "class_name": "ring", "error": None},
    {"image_path": "c.jpg", "error": "NOT_AN_IMAGE: no known format: at all"},
    {"image_path": "d.jpg", "probability": 0.6, "prediction": 1, "class_name": "ring", "error": None},
]

WIDE = [
    {
        "image_path": f"{number}.jpg",
        "nsfw_score": score,
        "nsfw_decision": ["allow", "review", "block"][decision],
        "nsfw_class_name": "nsfw" if decision else "safe",
        "aesthetic_score": 10 * score - 1,
        "error": "",
        "model_version": "nsfw-01",
    }
    for number, (score, decision) in enumerate([(0.2, 0), (0.95, 2), (0.5, 1), (0.45, 1), (0.3, 0)])
]


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    names = list({name: None for row in rows for name in row})
    full = [{name: row.get(name) for name in names} for row in rows]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(full), file, row_group_size=2)
    elif file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, names)
            writer.writeheader()
            writer.writerows(full)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text(json.dumps(rows))
    return file


def _data(page: Path) -> tuple[dict[str, Any], list[Any]]:
    """The facts and the pictures in a page."""
    text = page.read_text()
    blocks = [json.loads(block) for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text)]
    return blocks[0], [picture for block in blocks[1:] for picture in block]


def _report(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[dict[str, Any], list[Any]]:
    write_report(_write(folder / "t.parquet", rows), folder / "r.html", ReportOptions(images=folder, **options))
    return _data(folder / "r.html")


def _column(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return next(column for column in facts["columns"] if column["name"] == name)


def _run(*arguments: object, **environment: str):
    return CliRunner(env={"COLUMNS": "250", **environment}).invoke(_app(), [str(each) for each in arguments])


def _app() -> typer.Typer:
    app = typer.Typer(add_completion=False)
    app.command()(report)
    return app


# Tables


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json"])
def test_every_kind_of_table_gives_the_same_page(tmp_path, suffix):
    write_report(_write(tmp_path / f"t{suffix}", CLASSIC), tmp_path / "r.html", ReportOptions())
    facts, pictures = _data(tmp_path / "r.html")
    assert (facts["rows"], facts["scored"], len(pictures)) == (4, 3, 3)
    assert facts["names"] == ["b.jpg", "d.jpg", "a.jpg"]
    assert facts["errors"] == [["NOT_AN_IMAGE", "c.jpg", "no known format: at all"]]
    (column,) = facts["columns"]
    assert column["scores"] == [0.9, 0.6, 0.1]
    assert column["classNames"] == ["disc", "ring"]
    assert (column["bandNames"], column["bands"], column["bandCounts"]) == (["disc", "ring"], [1, 1, 0], [1, 2])
    assert column["threshold"] == 0.5  # the simplest number between the scores of disc and ring


def test_a_wide_table_has_a_column_for_each_head(tmp_path):
    facts, _ = _report(tmp_path, WIDE)
    nsfw, aesthetic = facts["columns"]
    assert (nsfw["bandNames"], nsfw["bandCounts"]) == (["allow", "review", "block"], [2, 2, 1])
    assert (nsfw["limits"], nsfw["thresholds"]) == ([0.4, 0.9], [])  # simple numbers between the bands
    assert nsfw["threshold"] == 0.4
    assert (nsfw["low"], nsfw["high"]) == (0, 1)
    assert (aesthetic["title"], aesthetic["low"], aesthetic["high"]) == ("aesthetic", 1, 9)
    assert aesthetic["classNames"] == ["", ""]
    assert facts["models"] == [["nsfw-01", 5]]


def test_classes_of_a_multiclass_head_are_its_bands(tmp_path):
    rows = [{"key": "a", "kind_1_score": 0.1, "kind_2_score": 0.9, "kind_class_name": "2"}]
    facts, pictures = _report(tmp_path, rows)
    assert [column["bandNames"] for column in facts["columns"]] == [["2"], ["2"]]
    assert [column["classNames"] for column in facts["columns"]] == [["", ""], ["", ""]]
    assert facts["nameColumn"] == "key"
    assert pictures == [{"missing": "in a shard: the table names no file"}]


def test_each_label_of_a_multilabel_head_has_its_decision(tmp_path):
    scored = {"risk_gore_score": 0.1, "risk_nude_score": 0.9}
    rows = [{"image_path": "a", **scored, "risk_gore_decision": "allow", "risk_nude_decision": "block"}]
    assert [column["bandNames"] for column in _report(tmp_path, rows)[0]["columns"]] == [["allow"], ["block"]]


@pytest.mark.parametrize("write", [int, str])
def test_decisions_may_be_numbers(tmp_path, write):
    """Decisions are numbers when the server does not say how many thresholds a head has."""
    passed = {"allow": 0, "review": 1, "block": 2}
    rows = [{**row, "nsfw_decision": write(passed[row["nsfw_decision"]])} for row in WIDE]
    nsfw = _column(_report(tmp_path, rows)[0], "nsfw_score")
    assert (nsfw["bandNames"], nsfw["bandCounts"]) == (["passes 0", "passes 1", "passes 2"], [2, 2, 1])
    assert nsfw["classNames"] == ["safe", "nsfw"]


def test_decisions_that_contradict_the_scores_set_no_threshold(tmp_path):
    rows = [dict(row) for row in WIDE]
    rows[1]["nsfw_decision"] = "allow"
    nsfw = _column(_report(tmp_path, rows)[0], "nsfw_score")
    assert (nsfw["limits"], nsfw["threshold"]) == ([], 0.5)


RECORD = RunRecord(
    {"nsfw_score": ScoreFacts(("safe", "nsfw"), (Threshold(0.41, "recall>=0.99"), Threshold(0.8, "f1")))},
    PassedOver({".heic": 3, ".tif": 1}),
)


def test_the_record_of_a_run_says_the_heads_own_thresholds_and_classes(tmp_path):
    """The classes have names, and the head its thresholds, also where all of the table has one class."""
    allowed = [row for row in WIDE if row["nsfw_decision"] == "allow"]
    for number, rows in enumerate([WIDE, allowed]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_record(folder / "t.parquet", RECORD)
        facts, _ = _report(folder, rows)
        nsfw = _column(facts, "nsfw_score")
        assert nsfw["thresholds"] == [[0.41, "recall>=0.99"], [0.8, "f1"]]
        assert (nsfw["threshold"], nsfw["limits"], nsfw["classNames"]) == (0.41, [0.41, 0.8], ["safe", "nsfw"])
        assert facts["passedOver"] == "passed over: 3 .heic, 1 .tif"


def test_a_record_that_contradicts_the_table_says_no_threshold(tmp_path):
    """Another program has decided since."""
    facts = {"nsfw_score": ScoreFacts((), (Threshold(0.25, ""), Threshold(0.97, "")))}
    write_record(tmp_path / "t.parquet", RunRecord(facts))
    nsfw = _column(_report(tmp_path, WIDE)[0], "nsfw_score")
    assert (nsfw["thresholds"], nsfw["limits"]) == ([], [0.4, 0.9])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"clipsieve": "run"}', '{"clipsieve": "run", "scores": 1}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "t.parquet.run.json").write_text(content)
    assert _column(_report(tmp_path, WIDE)[0], "nsfw_score")["limits"] == [0.4, 0.9]


def test_a_file_that_is_no_record_is_not_replaced(tmp_path):
    (tmp_path / "t.csv.run.json").write_text("mine")
    write_record(tmp_path / "t.csv", RECORD)
    assert (tmp_path / "t.csv.run.json").read_text() == "mine"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 1e300])
def test_a_row_without_score_or_reason_is_an_error_too(tmp_path, value):
    facts, _ = _report(tmp_path, [*CLASSIC, {"image_path": "e.jpg", "probability": value}])
    assert facts["errorCodes"] == [["NOT_AN_IMAGE", 1], ["NO_SCORE", 1]]
    assert facts["scored"] == 3


def test_a_table_without_any_score_is_a_page_of_errors(tmp_path):
    rows = [{"image_path": "a.jpg", "probability": None, "error": "went wrong"}]
    facts, pictures = _report(tmp_path, rows)
    assert (facts["errorCodes"], facts["names"], pictures) == ([["ERROR", 1]], [], [])


def test_scores_of_all_rows_are_in_the_page_however_few_pictures(tmp_path):
    rows = [{"image_path": str(n), "probability": n / 20_000} for n in range(20_000)]
    facts, pictures = _report(tmp_path, rows, limit=3)
    everything = np.frombuffer(base64.b64decode(facts["columns"][0]["sorted"]), "<f4")
    assert np.array_equal(everything, np.array([row["probability"] for row in rows], np.float32))
    assert facts["names"] == ["19999", "19998", "19997"]
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("order", "expected"), [("highest", [1, 3]), ("lowest", [0, 3]), ("near", [3, 1]), ("sample", None)]
)
def test_the_order_decides_which_rows_are_shown(tmp_path, order, expected):
    table = read_scores(_write(tmp_path / "t.csv", CLASSIC), 10)
    rows = choose_rows(table.column(None), table.scored(), order, 2, 0.7).tolist()
    if expected is None:
        assert len(set(rows)) == 2
        assert 2 not in rows
    else:
        assert rows == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no.csv", None, "cannot be read: No such file"),
        ("t.txt", "a", "known: .parquet, .csv"),
        ("t.csv", "", "no column image_path or key; found: none"),
        ("t.csv", "image_path,probability\n", "has no rows"),
        ("t.csv", "image_path,size\na,1\n", "found: image_path, size. Write the table with `clipsieve score`"),
        ("t.csv", "image_path,probability\na,high\n", "rows 1 to 1: probability 'high' is not a number"),
        ("t.csv", "image_path,probability\na\n", "row 2 (line 2) does not have the header's 2 fields"),
        ("t.csv", b"image_path,probability\n\xff,1\n", "not UTF-8 text"),
        ("t.parquet", "not Parquet", "not a readable parquet table"),
        ("t.jsonl", '{"image_path": "a"}\n{', "row 2 not valid JSON"),
        ("t.jsonl", "[1]\n", "row 1 is [1], expected an object"),
        ("t.json", '{"image_path": "a"}', "expected an array of objects"),
        ("t.json", "[" * 100_000, "not a readable json table"),
    ],
)
def test_what_is_no_table_of_scores_is_said(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError) as error:
        write_report(tmp_path / name, tmp_path / "r.html", ReportOptions())
    assert words in str(error.value)
    assert name in str(error.value)
    assert not (tmp_path / "r.html").exists()


# The page


def test_hostile_names_stay_data(tmp_path):
    rows = [{"image_path": name, "probability": 0.5, "error": None} for name in HOSTILE]
    rows += [{"image_path": name, "probability": None, "error": f"CODE: {name}"} for name in HOSTILE]
    facts, _ = _report(tmp_path, rows)
    assert facts["names"] == HOSTILE
    assert [message for _, _, message in facts["errors"]] == HOSTILE
    page = (tmp_path / "r.html").read_text()
    assert page.count("<script") == 3
    assert "hacked=1</script>" not in page
    assert "<img src=x" not in page


def test_the_pages_own_text_is_all_that_may_run(tmp_path):
    _report(tmp_path, CLASSIC)
    page = (tmp_path / "r.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src data: file: 'self'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page)


def test_any_bytes_in_a_name_find_their_picture(tmp_path):
    name = os.fsdecode(b"\xff<b>\n.jpg")
    (tmp_path / name).write_bytes(jpeg())
    _, pictures = _report(tmp_path, [{"image_path": text_from_path(name), "probability": 0.5}])
    assert pictures[0]["url"] == "./%FF%3Cb%3E%0A.jpg"
    assert pictures[0]["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_pictures_can_be_linked(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "page").mkdir()
    name = os.fsdecode(b"pics/a b#?%\xff.jpg")
    (tmp_path / name).write_bytes(jpeg())
    table = _write(tmp_path / "t.csv", [{"image_path": text_from_path(name), "probability": 1}, CLASSIC[0]])
    write_report(table, tmp_path / "page" / "r.html", ReportOptions(images=tmp_path, link_images=True))
    _, pictures = _data(tmp_path / "page" / "r.html")
    assert pictures[0] == {"url": "./../pics/a%20b%23%3F%25%FF.jpg"}
    assert pictures[1] == {"missing": "UNREADABLE: No such file or directory"}
    assert "img-src data: file: 'self';" in (tmp_path / "page" / "r.html").read_text()


def test_the_summary_counts(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    table = _write(tmp_path / "t.csv", CLASSIC)
    summary = write_report(table, tmp_path / "r.html", ReportOptions(images=tmp_path))
    assert (summary.rows, summary.scored, summary.shown, summary.missing) == (4, 3, 3, 2)
    assert summary.bytes == (tmp_path / "r.html").stat().st_size


def test_a_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    table = _write(tmp_path / "t.csv", CLASSIC)
    write_report(table, tmp_path / "r.html", ReportOptions())
    before = (tmp_path / "r.html").read_bytes()
    with pytest.raises(OutputRefused, match="already exists"):
        write_report(table, tmp_path / "r.html", ReportOptions())
    monkeypatch.setattr("clipsieve.report.page._entry", lambda picture: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(table, tmp_path / "r.html", ReportOptions(overwrite=True))
    assert (tmp_path / "r.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "t.csv"]


def test_marks_are_kept_by_what_the_table_holds(tmp_path):
    """The same scores under another name are the same report, other scores are not."""
    ids = []
    for number, rows in enumerate([CLASSIC, CLASSIC, WIDE]):
        page = tmp_path / f"{number}.html"
        write_report(_write(tmp_path / f"{number}.csv", rows), page, ReportOptions())
        ids.append(_data(page)[0]["id"])
    assert ids[0] == ids[1] != ids[2]


def test_no_warning_filter_or_thread_is_left_behind(tmp_path):
    before, threads = list(warnings.filters), threading.active_count()
    _report(tmp_path, CLASSIC)
    assert warnings.filters == before
    assert threading.active_count() == threads


# The command


def test_the_command_writes_the_page_and_says_so(tmp_path):
    table = _write(tmp_path / "t.csv", CLASSIC)
    result = _run(table, "-o", tmp_path / "r.html", "--class-names", "good, bad", "--threshold", "0.25")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "4 rows, 1 without a score; shown: 3 (3 without a picture)" in result.stderr
    column = _data(tmp_path / "r.html")[0]["columns"][0]
    assert (column["threshold"], column["classNames"]) == (0.25, ["good", "bad"])


def test_every_flag_has_a_variable(tmp_path):
    table = _write(tmp_path / "t.csv", WIDE)
    result = _run(
        CLIPSIEVE_TABLE=str(table),
        CLIPSIEVE_OUT=str(tmp_path / "r.html"),
        CLIPSIEVE_HEAD="aesthetic",
        CLIPSIEVE_ORDER="lowest",
        CLIPSIEVE_LIMIT="2",
        CLIPSIEVE_QUIET="1",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    facts, _ = _data(tmp_path / "r.html")
    assert facts["names"] == ["0.jpg", "4.jpg"]
    assert (facts["first"], facts["order"], facts["orderedBy"]) == (1, "lowest", "aesthetic")
    command = typer.main.get_command(_app())
    assert all(option.envvar for option in command.params)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["t.csv", "-o", "r.pdf"], 2, "unknown suffix '.pdf'"),
        (["t.csv", "-o", "there.html"], 2, "already exists; give --overwrite"),
        (["t.csv", "--class-names", "one"], 2, "'one' is not two names"),
        (["t.csv", "--class-names", "a,a"], 2, "not two names"),
        (["t.csv", "--threshold", "nan"], 2, "not a finite number"),
        (["t.csv", "--order", "best"], 2, "best"),
        (["t.csv", "--limit", "0"], 2, "--limit"),
        ([], 2, "TABLE"),
        (["no.csv"], 2, "clipsieve: no.csv: cannot be read: No such file or directory"),
        (["t.csv", "--head", "gore"], 2, "no column of scores 'gore'; there are: probability"),
    ],
)
def test_errors_are_a_line_and_a_status(tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    _write(Path("t.csv"), CLASSIC)
    Path("there.html").touch()
    result = _run(*arguments)
    assert result.exit_code == status
    assert words in result.stderr
    assert not Path("report.html").exists()
