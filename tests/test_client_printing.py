"""The tables that the command line prints for people."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from clipsieve.printing import print_scores, shortened

PLAIN = ["image_path", "probability", "prediction", "class_name", "decision", "error", "model_version"]
WIDE = ["image_path", "nsfw_score", "nsfw_decision", "nsfw_class_name", "aesthetic_score", "error", "model_version"]
LONG = "/srv/photographs/2019/holidays-in-the-mountains/originals/IMG_20190814_114523.jpg"
VERSION = "nsfw-0123456789abcdef"
ERROR = "NOT_AN_IMAGE: a HEIC picture, which this server does not decode"


def _printed(capsys: pytest.CaptureFixture[str], names: list[str], rows: list[tuple[object, ...]]) -> list[str]:
    print_scores(names, rows)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


PLAIN_ROW = (LONG, 0.123456789, 0, "safe", "allow", None, VERSION)
WIDE_ROW = (LONG, 0.123456789, "review", "safe", 5.4321, None, f"{VERSION} aesthetic-0123456789abcdef")
FAILED = (LONG, None, None, None, None, ERROR, None)


@pytest.mark.parametrize(("names", "row"), [(PLAIN, PLAIN_ROW), (WIDE, WIDE_ROW)])
@pytest.mark.parametrize("more", [[], [FAILED]])
def test_a_row_is_a_line_of_80_columns(capsys, names, row, more) -> None:
    lines = _printed(capsys, names, [row, *more])
    assert all(cell_len(line) <= 80 for line in lines)
    (line,) = (line for line in lines if "0.1235" in line)
    path = line.split()[0]
    assert path.startswith("/srv")
    assert "…" in path
    assert path.endswith("23.jpg")


def test_versions_stand_once_below(capsys) -> None:
    lines = _printed(capsys, PLAIN, [PLAIN_ROW] * 3)
    assert lines[-1] == f"model_version: {VERSION}"
    assert "\n".join(lines).count(VERSION) == 1
    lines = _printed(capsys, PLAIN, [PLAIN_ROW, PLAIN_ROW, (*PLAIN_ROW[:-1], "nsfw-00")])
    assert lines[-2:] == [f"model_version: {VERSION} (2 of the rows)", "model_version: nsfw-00 (1 of the rows)"]


def test_an_error_is_a_code_in_its_row_and_a_text_below(capsys) -> None:
    lines = _printed(capsys, PLAIN, [PLAIN_ROW, ("a.heic", *FAILED[1:])])
    (row,) = (line for line in lines if line.split()[0] == "a.heic")
    assert row.split() == ["a.heic", "NOT_AN_IMAGE"]
    assert f"a.heic: {ERROR}" in " ".join(lines)


def test_a_wide_terminal_shows_the_whole_path(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert any(LONG in line for line in _printed(capsys, WIDE, [WIDE_ROW]))


def test_scores_have_four_places_and_names_do_not_move_the_cursor(capsys) -> None:
    lines = _printed(capsys, PLAIN, [("[red]a\n\x1b[2J.jpg", 1.0, 1, "nsfw", "block", None, VERSION)])
    assert any(line.split()[:2] == ["[red]a\ufffd\ufffd[2J.jpg", "1.0000"] for line in lines)


@pytest.mark.parametrize("text", ["short.jpg", LONG, "写真" * 40, "é" * 50])
def test_a_text_is_shortened_in_its_middle(text) -> None:
    for width in (12, 20, 33):
        short = shortened(text, width)
        assert cell_len(short) <= width
        assert (short == text) == (cell_len(text) <= width)
        assert text.startswith(short.partition("…")[0])
        assert text.endswith(short.rpartition("…")[2])
