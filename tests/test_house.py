"""The times of the Makefile's targets: which line is kept, and what is said of one that fails."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.house import INSTALLED, TARGETS, Target, TargetFailed, last_match, make, timed
from common.paths import ROOT

PYTEST = """tests/test_a.py .....
SKIPPED [1] tests/test_b.py:3: no chromium
=========== 1200 passed, 3 skipped in 412.31s (0:06:52) ===========
"""
DEMO = "angular   100\nAUROC 0.969 (95 %: 0.94 to 0.99), accuracy 0.915 on 200 held-out pictures\nscores: x\n"


def test_the_line_that_says_how_it_went_is_kept():
    assert last_match(TARGETS["test"].line, PYTEST) == "1200 passed, 3 skipped"
    assert last_match(TARGETS["demo"].line, DEMO).startswith("AUROC 0.969 (95 %: 0.94 to 0.99), accuracy 0.915")
    assert last_match(TARGETS["demo"].line, "nothing") == ""


def test_time_and_processor_time_are_of_its_own_processes():
    code = "import os, time; time.sleep(0.2); sum(range(10**6)); print('AUROC', os.environ['CLIPSIEVE_ARTIFACTS'])"
    row = timed(Target((sys.executable, "-c", code), r"^AUROC .*"))
    assert row["seconds"] >= 0.2
    assert row["processor_s"] >= 0
    assert re.match(r"AUROC .*clipsieve-house-", row["result"])


def test_a_failure_ends_with_what_was_printed_last():
    with pytest.raises(TargetFailed, match=r"ended with status 3:\n.*the reason"):
        timed(Target((sys.executable, "-c", "print('the reason'); raise SystemExit(3)"), "x"))


def test_a_make_that_is_timed_does_not_inherit_the_variables_of_the_one_around_it(monkeypatch):
    """As `make bench NAME=house` has them, and every make in the tests that it runs would."""
    monkeypatch.setenv("MAKEFLAGS", " -- NAME=house")
    monkeypatch.setenv("MAKELEVEL", "1")
    shown = make(("make", "-n", "bench"), {})
    assert "-m benchmarks" in shown
    assert "house" not in shown


@pytest.mark.parametrize("command", [*[each.command for each in TARGETS.values()], ("make", *INSTALLED)])
def test_the_makefile_has_what_is_timed(command):
    shown = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
