"""Downloads of a training step: `common.download`, with its errors as the step's."""

from __future__ import annotations

from pathlib import Path

from common import download as shared
from common.download import DownloadError
from training.errors import StepError


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Fetch `url` to `target`, unless a file with that sum is there already; returns `target`.

    Raises:
        StepError: the address cannot be reached, the transfer broke off, or the sum is another one.
    """
    try:
        return shared.download(url, target, sha256)
    except DownloadError as error:
        raise StepError(str(error)) from error


def check_sha256(path: Path, sha256: str | None, what: str) -> str:
    """The file's sum, which must be `sha256` unless that is None; `what` starts the error (a StepError)."""
    try:
        return shared.check_sha256(path, sha256, what)
    except DownloadError as error:
        raise StepError(str(error)) from error
