"""Finds the published heads' files on this machine, for the tests that need the real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.paths import ROOT
from training.published import PUBLISHED

FOLDER = Path(os.environ.get("CLIPSIEVE_PUBLISHED_HEADS", ROOT.parent / "shared" / "heads"))


def published_file(name: str) -> Path:
    """The file of the published head `name`; without it the test is skipped."""
    file = FOLDER / PUBLISHED[name].file
    if not file.is_file():
        pytest.skip(f"{file.name} is not here; CLIPSIEVE_PUBLISHED_HEADS names a folder with the published files")
    return file
