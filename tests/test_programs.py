"""Tests without their program are left out in one line."""

from __future__ import annotations

import pytest
from programs import is_left_out, line_of, program_or_skip


def report_of(test: str, reason: str) -> pytest.TestReport:
    return pytest.TestReport(test, ("", 0, ""), {}, "skipped", ("file.py", 1, f"Skipped: {reason}"), "setup")


def reason_without(program: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception) as caught:
        program_or_skip(program)
    return str(caught.value)


def test_a_program_that_is_there_is_found(tmp_path, monkeypatch):
    (tmp_path / "chromium").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program_or_skip("chromium") == str(tmp_path / "chromium")


def test_one_line_names_files_and_packages(monkeypatch):
    reports = [
        report_of("tests/test_b.py::test_1", reason_without("promtool", monkeypatch)),
        report_of("tests/test_a.py::test_1[x]", reason_without("chromium", monkeypatch)),
        report_of("tests/test_a.py::test_2", reason_without("chromium", monkeypatch)),
    ]
    assert all(map(is_left_out, reports))
    assert line_of(reports) == (
        "tests left out: 2 of tests/test_a.py, 1 of tests/test_b.py; to have them: apt-get install chromium prometheus"
    )


def test_other_skips_keep_their_reasons():
    assert not is_left_out(report_of("test_a.py::test_1", "openssl is not installed"))
