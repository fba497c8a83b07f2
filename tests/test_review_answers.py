"""The files of answers: kept whole beside other pages, editors, and what was cut off."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from reviews import rows_of

from clipsieve.exceptions import AnswersRefused
from clipsieve.review.answer_file import LABELS, AnswerFile
from clipsieve.review.answers import Answers
from recipes.head_section import Head
from training.tables import Columns, samples_in_table


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path)


def _picture(folder: Path, number: int) -> str:
    return str(folder / f"{number}.jpg")


def test_answers_are_what_training_reads(answers: Answers, tmp_path: Path) -> None:
    for number, label in enumerate(["keep", "delete", "keep"]):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
        answers.give("label", _picture(tmp_path, number), label)
        answers.give("grade", _picture(tmp_path, number), str(number + 1))
    answers.give("label", _picture(tmp_path, 0), "delete")  # the last word, not a second rater
    taste = Head(name="taste", class_names=["keep", "delete"])
    data = samples_in_table(tmp_path / "labels.csv", taste, Columns())
    assert [sample.label for sample in data.samples] == ["delete", "delete", "keep"]
    assert data.failures == []
    graded = Head(name="taste", task="regression", class_names=["taste"])
    data = samples_in_table(tmp_path / "grades.csv", graded, Columns())
    assert [sample.label for sample in data.samples] == ["1.0", "2.0", "3.0"]


def test_choices_are_rows_of_winner_and_loser(answers: Answers, tmp_path: Path) -> None:
    answers.choose(_picture(tmp_path, 1), _picture(tmp_path, 2))
    answers.choose(_picture(tmp_path, 1), _picture(tmp_path, 2))
    text = (tmp_path / "pairs.csv").read_text()
    assert text == "winner,loser\n" + f"{tmp_path}/1.jpg,{tmp_path}/2.jpg\n" * 2
    assert answers.pairs() == [(_picture(tmp_path, 1), _picture(tmp_path, 2))] * 2


def test_undo_gives_back_what_was_there_before(answers: Answers, tmp_path: Path) -> None:
    one, two = _picture(tmp_path, 1), _picture(tmp_path, 2)
    answers.give("label", one, "keep")
    answers.give("label", one, "delete")
    answers.choose(one, two)
    answers.choose(two, one)
    assert (undone := answers.undo())
    assert undone.paths == (two, one)
    assert answers.pairs() == [(one, two)]
    answers.undo()
    assert rows_of(tmp_path / "pairs.csv") == []
    answers.undo()
    assert answers.of("label") == {one: "keep"}
    answers.undo()
    assert answers.of("label") == {}
    assert answers.undo() is None
    assert not answers.can_undo


def test_two_pages_lose_nothing(tmp_path: Path) -> None:
    """Both append and change at the same time."""
    pages = [Answers(tmp_path), Answers(tmp_path)]

    def work(page: int) -> None:
        for number in range(40):
            pages[page].give("label", _picture(tmp_path, 2 * number + page), "keep")
            if number % 3 == 0:
                pages[page].give("label", _picture(tmp_path, 2 * number + page), "delete")
            pages[page].choose(_picture(tmp_path, page), _picture(tmp_path, number + 2))

    threads = [threading.Thread(target=work, args=(page,)) for page in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(tmp_path / "labels.csv")) == 80
    assert len(rows_of(tmp_path / "pairs.csv")) == 80
    assert pages[0].of("label") == pages[1].of("label")
    assert sum(label == "delete" for label in pages[0].of("label").values()) == 28


def test_rows_and_columns_of_others_stay(tmp_path: Path) -> None:
    """A spreadsheet saved semicolons, a mark at the beginning, Windows' line ends and a column of notes."""
    file = tmp_path / "labels.csv"
    file.write_bytes('\ufeffpath;note;label\r\n1.jpg;mine;keep\r\n2.jpg;"a; b";delete\r\n'.encode())
    answers = Answers(tmp_path)
    assert answers.of("label") == {_picture(tmp_path, 1): "keep", _picture(tmp_path, 2): "delete"}
    answers.give("label", _picture(tmp_path, 3), "keep")
    answers.give("label", _picture(tmp_path, 1), "delete")
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    assert lines == ["path;note;label", "1.jpg;mine;delete", '2.jpg;"a; b";delete', f"{tmp_path}/3.jpg;;keep"]
    assert b"\r\n" in file.read_bytes()


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        ("3.jpg,keep", ["3.jpg", "keep"]),
        ("3.jp", ["3.jp", ""]),
        ('"3, 4.jpg', ["3, 4.jpg", ""]),
    ],
)
def test_a_last_line_that_was_cut_off_is_ended(tmp_path: Path, end: str, kept: list[str]) -> None:
    """The next answer is a line of its own, and training can read the file."""
    file = tmp_path / "labels.csv"
    file.write_text(f"path,label\n1.jpg,keep\n{end}")
    answers = Answers(tmp_path)
    answers.give("label", _picture(tmp_path, 5), "delete")
    assert rows_of(file) == [["1.jpg", "keep"], kept, [_picture(tmp_path, 5), "delete"]]
    assert answers.of("label")[_picture(tmp_path, 5)] == "delete"
    taste = Head(name="taste", class_names=["keep", "delete"])
    samples_in_table(file, taste, Columns())


def test_an_edit_by_hand_counts_at_once(answers: Answers, tmp_path: Path) -> None:
    one = _picture(tmp_path, 1)
    answers.give("label", one, "keep")
    before = answers.version()
    (tmp_path / "labels.csv").write_text(f"path,label\n{one},delete\n2.jpg,keep\n")
    assert answers.version() != before
    assert answers.of("label") == {one: "delete", _picture(tmp_path, 2): "keep"}
    assert answers.lost() == 0  # it was changed on purpose


def test_answers_that_an_editor_saved_over_are_put_back(answers: Answers, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    answers.give("label", _picture(tmp_path, 1), "keep")
    old = file.read_text()
    answers.give("label", _picture(tmp_path, 2), "delete")
    file.write_text(old)
    assert answers.lost() == 1
    assert answers.put_back() == 1
    assert answers.of("label")[_picture(tmp_path, 2)] == "delete"
    file.write_text(old)
    answers.forget_lost()
    assert answers.lost() == 0
    assert file.read_text() == old


def test_what_is_odd_is_told_and_stays(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\n1.jpg,keep,more\n2.jpg,keep\n2.jpg,delete\n")
    answers = Answers(tmp_path)
    several, odd = sorted(answers.notices(), key=lambda notice: "line" in notice)
    assert "labels.csv line 2 has not as many fields" in odd
    assert "several rows of 1 pictures" in several
    answers.give("label", _picture(tmp_path, 2), "keep")
    assert (tmp_path / "labels.csv").read_text() == "path,label\n1.jpg,keep,more\n2.jpg,keep\n"


@pytest.mark.parametrize("content", [b"name,kind\na,b\n", b"\xff\xfep\0a\0t\0h\0"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(AnswersRefused, match=r"labels\.csv: "):
        Answers(tmp_path)
    assert (tmp_path / "labels.csv").read_bytes() == content


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AnswerFile(tmp_path / "labels.csv", LABELS)
    file.append("1.jpg", "keep")
    write = os.write

    def half(descriptor: int, data) -> int:
        if len(data) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(AnswersRefused, match="No space left"):
        file.append("2.jpg", "delete")
    monkeypatch.undo()
    assert rows_of(file.file) == [["1.jpg", "keep"]]
    file.append("3.jpg", "keep")
    assert rows_of(file.file) == [["1.jpg", "keep"], ["3.jpg", "keep"]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(AnswersRefused, match="--out"):
            Answers(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnswersRefused, match="--out"):
        Answers(tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", ['a "b", c.jpg', "two\nlines.jpg", "é;\t.jpg", "bad\udc80.jpg", "=1+1.jpg"])
def test_any_name_comes_back(answers: Answers, tmp_path: Path, name: str) -> None:
    answers.give("label", str(tmp_path / name), "keep")
    answers.give("label", _picture(tmp_path, 1), "keep")
    assert Answers(tmp_path).of("label") == {str(tmp_path / name): "keep", _picture(tmp_path, 1): "keep"}
    answers.give("label", str(tmp_path / name), None)
    assert Answers(tmp_path).of("label") == {_picture(tmp_path, 1): "keep"}
