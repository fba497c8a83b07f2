"""Programs that a few tests need beside the packages: without them those tests are left out, in one line at the end."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence

import pytest

PACKAGES = {
    "chromium": "chromium",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "prometheus-blackbox-exporter": "prometheus-blackbox-exporter",
    "caddy": "caddy",
    "nginx": "nginx",
    "openssl": "openssl",
}
"""Debian's package of each program."""
_REASON = re.compile(r"no (\S+) on PATH, which Debian has in the package (\S+)$")


def program_or_skip(name: str) -> str:
    """Path of the program; without it the test is left out."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on PATH, which Debian has in the package {PACKAGES[name]}")
    return path


def is_left_out(report: pytest.TestReport) -> bool:
    """True if a test was skipped because a program is missing."""
    return _package_of(report) is not None


def line_of(reports: Sequence[pytest.TestReport]) -> str:
    """A line with the number of tests of each file that were left out, and the command that installs their programs."""
    counts = Counter(report.nodeid.partition("::")[0] for report in reports)
    files = ", ".join(f"{count} of {file}" for file, count in sorted(counts.items()))
    packages = sorted({package for report in reports if (package := _package_of(report))})
    return f"tests left out: {files}; to have them: apt-get install {' '.join(packages)}"


def _package_of(report: pytest.TestReport) -> str | None:
    if not report.skipped or not isinstance(report.longrepr, tuple):
        return None
    match = _REASON.search(report.longrepr[2])
    return match[2] if match else None
