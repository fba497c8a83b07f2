"""The command with closed, full and ASCII streams: one line and a status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

COLUMNS = "image_path,probability,prediction,class_name,decision,error,model_version\n"
COMMAND = f"{sys.executable} -m clipsieve.cli"
NOBODY = "--url localhost:9 --wait 0"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of scores, with a name that is no ASCII."""
    path = tmp_path / "scores.csv"
    path.write_text(f"{COLUMNS}café.png,0.9,1,nsfw,block,,nsfw-1\n", encoding="utf-8")
    for name in ("a.png", "café.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return path


def _run(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        ["bash", "-c", line.replace("clipsieve", COMMAND, 1)],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    return result


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (f"clipsieve score - {NOBODY} <&-", 2, "standard input cannot be read: Bad file descriptor"),
        (f"clipsieve score a.png {NOBODY} 2>&-", 5, ""),
        ("clipsieve filter scores.csv --at-least 0.5 >&-", 1, "clipsieve: Bad file descriptor"),
        ("clipsieve --help >&-", 1, "standard input or output: Bad file descriptor"),
        ("clipsieve --version <&- >&- 2>&-", 1, ""),
        ("clipsieve --help >/dev/full", 1, "standard output: No space left on device"),
        ("clipsieve filter scores.csv --at-least 0.5 >/dev/full", 1, "No space left on device"),
    ],
)
def test_a_stream_that_cannot_be_used(line: str, status: int, message: str, table: Path) -> None:
    result = _run(line, table.parent)
    assert (result.returncode, message in result.stderr) == (status, True), result.stderr
    assert result.stderr.count("\n") <= 1


def test_a_reader_that_has_enough_ends_it_quietly(table: Path) -> None:
    table.write_text(COLUMNS + "a.jpg,0.9,1,nsfw,block,,nsfw-1\n" * 50_000, encoding="utf-8")
    result = _run("clipsieve filter scores.csv --at-least 0.5 | head -1; exit ${PIPESTATUS[0]}", table.parent)
    assert result.stdout == "a.jpg\n"
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_names_on_a_terminal_that_knows_ascii_alone(variables: dict[str, str], table: Path) -> None:
    line = f"clipsieve report scores.csv --out page.html && {COMMAND} score caf*.png {NOBODY}"
    result = _run(line, table.parent, **variables)
    assert result.returncode == 5, result.stderr
    assert (table.parent / "page.html").is_file()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CLIPSIEVE_TOKEN": "abc\ndef"}, "the token has a line break at place 4; it must be one line"),
        ({"CLIPSIEVE_TOKEN": "abcé"}, "the token has the character U+00E9 at place 4"),
        ({"CLIPSIEVE_TOKEN": "abc\n"}, "server unavailable"),
    ],
)
def test_a_token_that_cannot_be_sent_is_not_shown(variables: dict[str, str], message: str, table: Path) -> None:
    result = _run(f"clipsieve score a.png {NOBODY}", table.parent, COLUMNS="200", **variables)
    assert message in result.stderr
    assert "abc" not in result.stderr
