"""Files of other people: downloaded with their sha256 checked, resumed when a download broke off.

DownloadError
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from common.manifest import sha256_of
from common.writing import writing
from recipes.errors import ExpectedError

REACH_S = 4
"""Seconds in which a server must take a connection, or there is no network."""
_TIMEOUT_S = 30
_ATTEMPTS = 3
_BLOCK_BYTES = 1 << 16


class DownloadError(ExpectedError):
    """A file could not be had, or is not the one that was wanted. The message is for people."""


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Fetch `url` to `target`, unless a file with that sum is there already; returns `target`.

    What has arrived is kept in `<target>.partial`, and the next attempt asks only for the rest.

    Raises:
        DownloadError: the address cannot be reached, the transfer broke off, or the sum is another one.
        OSError: what arrives cannot be written.
    """
    if target.is_file() and sha256 is not None and sha256_of(target) == sha256:
        return target
    partial = target.with_name(target.name + ".partial")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, partial)
    try:
        check_sha256(partial, sha256, f"what {url} sent")
    except DownloadError:
        partial.unlink()  # nothing to resume from
        raise
    return partial.replace(target)


def unreachable(url: str) -> str | None:
    """Return why the server of an address, or the proxy before it, is not reached in `REACH_S`; None if it is.

    Without a network some lookups and libraries try for minutes.
    """
    parts = urlsplit(url)
    proxy = None if urllib.request.proxy_bypass(parts.netloc) else urllib.request.getproxies().get(parts.scheme)
    if proxy is not None:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reasons = [f"{parts.hostname} does not answer within {REACH_S} s"]

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname or "", port), REACH_S):
                reasons.append("")
        except OSError as error:
            reasons.append(f"{parts.hostname}: {error.strerror or error}")

    # In a thread, because a name's lookup knows no time limit.
    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(REACH_S)
    return reasons[-1] or None


def check_sha256(path: Path, sha256: str | None, what: str) -> str:
    """The file's sum, which must be `sha256` unless that is None; `what` starts the error."""
    actual = sha256_of(path)
    if sha256 is not None and actual != sha256:
        raise DownloadError(f"{what}: sha256 is {actual}, expected {sha256}; it is not the file that was published")
    return actual


def _fetch(url: str, partial: Path) -> None:
    problem = unreachable(url) or ""
    for attempt in () if problem else range(1, _ATTEMPTS + 1):
        try:
            _fetch_rest(url, partial)
            return
        except urllib.error.HTTPError as error:
            with closing(error):
                if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # the partial file is too long
                    partial.unlink()
                elif error.code < 500:
                    raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
                problem = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "filename", None) is not None:  # what arrives cannot be written
                raise
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < _ATTEMPTS:
            time.sleep(0.2 * attempt)
    have = partial.stat().st_size if partial.is_file() else 0
    kept = f"; {have} bytes are kept, run again to go on from there" if have else ""
    raise DownloadError(f"{url}: could not be downloaded ({problem}){kept}")


def _fetch_rest(url: str, partial: Path) -> None:
    """Append what is missing to `partial`.

    Raises:
        OSError, HTTPException: it broke off; what has arrived is in `partial`.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with _opened(partial, resumed) as file, _bar(partial, total, have) as progress:
            for block in _blocks(response):
                with writing(partial):
                    file.write(block)
                progress.advance(progress.task_ids[0], len(block))
    size = partial.stat().st_size
    if total is not None and size < total:
        raise http.client.HTTPException(f"it broke off after {size} of {total} bytes")


def _opened(partial: Path, resumed: bool) -> BinaryIO:
    with writing(partial):
        return partial.open("ab" if resumed else "wb", buffering=0)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read(_BLOCK_BYTES):
        yield block


def _bar(partial: Path, total: int | None, have: int) -> Progress:
    progress = Progress(
        "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
    )
    progress.add_task(partial.name.removesuffix(".partial"), total=total, completed=have)
    return progress
