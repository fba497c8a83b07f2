"""Score files beside the truth."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from recipes.errors import run_step
from training import analyse


def _analyse(*arguments: object) -> int:
    return run_step("training.analyse", lambda: analyse.main([str(argument) for argument in arguments]))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = "".join(f"{number}.jpg,{number}\n" for number in range(10))
    return _write(tmp_path / "truth.csv", f"path,score\n{rows}")


def test_the_figures_are_json_and_the_errors_the_largest_first(truth: Path, tmp_path: Path, capsys) -> None:
    scores = {f"{number}.jpg": number for number in range(10)} | {"3.jpg": 9.5, "5.jpg": 4}
    file = _write(tmp_path / "theirs.json", json.dumps(scores))
    out = tmp_path / "errors.csv"
    assert _analyse(file, "--truth", truth, "--out", out) == 0
    printed, shown = capsys.readouterr()
    figures = json.loads(printed)
    assert figures["n"] == 10
    assert figures["mae"] == pytest.approx(0.75)
    assert figures["accuracy_divider"] == 4.5
    assert "theirs.json: 10 pictures, mse" in shown
    with out.open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["path"] for row in rows[:2]] == ["3.jpg", "5.jpg"]
    assert (rows[0]["error"], rows[0]["truth"]) == ("6.5", "3")


def test_our_tables_of_scores_are_read(truth: Path, tmp_path: Path, capsys) -> None:
    rows = "".join(f"{tmp_path}/{number}.jpg,{-number},0.5,\n" for number in range(9))
    table = f"image_path,taste_score,taste_deviation,error\n{rows}broken.jpg,,,NOT_AN_IMAGE\n"
    assert _analyse(_write(tmp_path / "ours" / "scores.csv", table), "--truth", truth) == 0
    printed, shown = capsys.readouterr()
    assert json.loads(printed)["ab"] == 0
    assert "1 rows have no taste_score" in shown
    assert "1 pictures of the truth have no score, the first: 9.jpg" in shown


def test_the_truth_may_be_choices(tmp_path: Path, capsys) -> None:
    choices = _write(tmp_path / "choices.csv", "winner,loser\na.jpg,b.jpg\nc.jpg,a.jpg\nb.jpg,gone.jpg\nb.jpg,c.jpg\n")
    scores = _write(tmp_path / "scores.csv", "path,score\na.jpg,3\nb.jpg,1\nc.jpg,3\n")
    assert _analyse(scores, "--truth", choices) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["ab"], figures["ab_pairs"], figures["ab_tied_scores"], figures["choices_left_out"]) == (
        0.5,
        3,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,score\n0.jpg,nan\n", "row 2 (0.jpg): score is 'nan', no finite number"),
        ("path,score\n0.jpg,inf\n", "no finite number"),
        ("path,score\nx.jpg,1\n", "0 pictures of"),
        ("path,one_score,two_score\n0.jpg,1,2\n", "--score-column"),
        ("name,score\n0.jpg,1\n", "no column of paths"),
    ],
)
def test_bad_scores_are_refused(truth: Path, tmp_path: Path, capsys, text: str, problem: str) -> None:
    assert _analyse(_write(tmp_path / "scores.csv", text), "--truth", truth) == 1
    assert problem in " ".join(capsys.readouterr().err.split())


def test_equal_grades_have_no_order(tmp_path: Path, capsys) -> None:
    rows = "".join(f"{number}.jpg,5\n" for number in range(4))
    truth = _write(tmp_path / "truth.csv", f"path,score\n{rows}")
    scores = _write(tmp_path / "scores.csv", "path,score\n0.jpg,1\n1.jpg,2\n2.jpg,3\n3.jpg,4\n")
    assert _analyse(scores, "--truth", truth) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["ab"] is None
    assert figures["spearman"] is None
