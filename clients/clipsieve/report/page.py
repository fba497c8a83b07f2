"""A table of scores → one HTML page to look at them, which needs no server and asks nothing of the network.

The page is page.html with the data written into it as JSON, where its script looks for it. What comes
from the table is data alone, never markup: the only script and the only style that run are the
template's own, named by their hashes in the page's Content-Security-Policy.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import stat
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clipsieve.outputs import check_output, replacing
from clipsieve.pages import assembled_page, element_hashes
from clipsieve.paths import path_from_text, text_from_path
from clipsieve.report.table import Column, Order, ScoreTable, choose_rows, read_names, read_scores
from clipsieve.report.thumbnails import Missing, Thumbnail, quiet_decoders, thumbnails
from clipsieve.scoring import shortest

_CHUNK = 200
"""Pictures a data block; the page parses a block when one of its pictures is first seen."""

_DECODERS = min(8, os.cpu_count() or 1)
"""Threads; each may hold one decoded file, see `thumbnails.MAX_PIXELS`."""


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    url: str
    """Address of the file, relative to the page."""
    thumbnail: Thumbnail | None
    """None where the page refers to the files alone."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of the page: what it shows first, and how much of the table."""

    head: str | None = None
    """The column of scores to begin with, `nsfw` or `nsfw_score`; by default the table's first."""
    threshold: float | None = None
    """Threshold at the start; by default where the table's own decisions change, else 0.5 or the middle of the axis."""
    order: Order = "highest"
    limit: int = 5000
    """The most pictures, and the most errors, to put into the page; its counts are those of all rows."""
    class_names: tuple[str, str] | None = None
    """Negative and positive, as marks are exported; by default as the table names them."""
    images: Path = Path()
    """Folder that relative paths start from."""
    thumbnail_size: int = 128
    """Longer side in pixels."""
    blur: bool = True
    """Blur the pictures until they are asked for."""
    link_images: bool = False
    """Refer to the files where they are instead of holding thumbnails."""
    overwrite: bool = False


@dataclass(frozen=True)
class ReportSummary:
    """Summary of a page's content."""

    rows: int
    scored: int
    shown: int
    missing: int
    """Number of shown rows that have no picture."""
    bytes: int

    def __str__(self) -> str:
        missing = f" ({self.missing} without a picture)" if self.missing else ""
        failed = self.rows - self.scored
        return f"{self.rows} rows, {failed} without a score; shown: {self.shown}{missing}, {self.bytes / 2**20:.1f} MiB"


def write_report(table: Path, out: Path, options: ReportOptions, show_progress: bool = False) -> ReportSummary:
    """Write the page; it appears whole or not at all. At most a few hundred pictures are in memory at a time.

    Args:
        table: as `clipsieve score` writes it: .parquet, .csv, .jsonl or .json.
        out: the page, .html.
        show_progress: a bar on stderr.

    Raises:
        OutputRefused: the page cannot be written there, or is there already.
        TableError: the table cannot be read, is empty or has no column of scores.
    """
    check_output(out, (".html", ".htm"), options.overwrite)
    scores = read_scores(table, options.limit)
    column = scores.column(options.head)
    threshold = _threshold(column) if options.threshold is None else options.threshold
    rows = choose_rows(column, scores.scored(), options.order, options.limit, threshold)
    names = read_names(scores, rows)
    facts = _facts(scores, column, threshold, rows, names, options)
    with _progress_bar(len(names), show_progress) as advance:
        pictures = _Counted(_pictures(scores.name_column, names, out, options), advance)
        with replacing(out, Path.unlink) as file:
            _write_page(file, facts, pictures)
    scored = int(scores.scored().sum())
    return ReportSummary(scores.rows, scored, len(names), pictures.missing, out.stat().st_size)


class _Counted:
    """Passes pictures on, and counts those that are missing."""

    def __init__(self, pictures: Iterator[Picture | Missing], advance: Callable[[], None]) -> None:
        self.missing = 0
        self._pictures = pictures
        self._advance = advance

    def __iter__(self) -> Iterator[Picture | Missing]:
        for picture in self._pictures:
            self.missing += isinstance(picture, Missing)
            self._advance()
            yield picture


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr; yields the function that advances it by one picture."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("pictures", total=total)
        yield lambda: progress.advance(task)


def _threshold(column: Column) -> float:
    limits = column.limits()
    return limits[0] if limits else sum(column.axis()) / 2


def _facts(
    table: ScoreTable, first: Column, threshold: float, rows: np.ndarray, names: list[str], options: ReportOptions
) -> dict[str, Any]:
    """Everything in the page but the pictures."""
    thresholds = {column.source.name: _threshold(column) for column in table.columns} | {first.source.name: threshold}
    return {
        "id": _sha256(table.file),
        "table": table.file.name,
        "written": _utc(table.file.stat().st_mtime),
        "made": _utc(datetime.now().timestamp()),
        "rows": table.rows,
        "scored": int(table.scored().sum()),
        "order": options.order,
        "orderedBy": first.source.title,
        "blurred": options.blur,
        "passedOver": table.record.passed_over.summary().partition(";")[0],
        "folder": text_from_path(os.path.abspath(options.images)),
        "models": table.model_versions.most_common(5),
        "moreModels": max(0, len(table.model_versions) - 5),
        "errorCodes": table.error_codes.most_common(),
        "errors": [[error.code, error.name, error.message] for error in table.errors],
        "nameColumn": "key" if table.name_column == "key" else "path",
        "names": names,
        "first": table.columns.index(first),
        "columns": [
            _column_facts(column, rows, thresholds[column.source.name], options.class_names) for column in table.columns
        ],
    }


def _column_facts(
    column: Column, rows: np.ndarray, threshold: float, class_names: tuple[str, str] | None
) -> dict[str, Any]:
    low, high = column.axis()
    counts = np.bincount(column.bands[column.bands >= 0], minlength=len(column.band_names))
    everything = np.sort(column.scores[np.isfinite(column.scores)]).astype("<f4")
    return {
        "name": column.source.name,
        "title": column.source.title,
        "low": min(low, threshold),
        "high": max(high, threshold),
        "threshold": threshold,
        "limits": column.limits(),
        "thresholds": [[each.value, each.operating_point] for each in column.thresholds()],
        "bandNames": column.band_names,
        "bandCounts": counts.tolist(),
        "classNames": class_names or column.class_names or ("", ""),
        "sorted": base64.b64encode(everything.tobytes()).decode(),
        "scores": [shortest(score) if np.isfinite(score) else None for score in column.scores[rows]],
        "bands": column.bands[rows].tolist(),
    }


def _pictures(name_column: str, names: list[str], out: Path, options: ReportOptions) -> Iterator[Picture | Missing]:
    """One for each name, in order."""
    if name_column == "key":
        yield from [Missing("in a shard: the table names no file")] * len(names)
        return
    paths = [os.path.join(options.images, path_from_text(name)) for name in names]
    if options.link_images:
        yield from (_link(path, out) for path in paths)
        return
    with quiet_decoders(), ThreadPoolExecutor(_DECODERS) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for path, made in zip(chunk, thumbnails(chunk, options.thumbnail_size, pool), strict=True):
                yield made if isinstance(made, Missing) else Picture(_url(path, out), made)


def _link(path: str, page: Path) -> Picture | Missing:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return Missing("UNREADABLE: not a regular file")
    except (OSError, ValueError) as error:
        return Missing(f"UNREADABLE: {getattr(error, 'strerror', None) or error}")
    return Picture(_url(path, page), None)


def _url(path: str, page: Path) -> str:
    """Address of a file, relative to the page."""
    try:
        relative = os.path.relpath(path, page.parent)
    except ValueError:  # on another drive of Windows
        return Path(path).absolute().as_uri()
    return "./" + urllib.parse.quote(os.fsencode(relative))


def _write_page(file: BinaryIO, facts: dict[str, Any], pictures: _Counted) -> None:
    before, after = _template()
    file.write(before)
    file.write(_data_block(facts, 'id="facts"'))
    entries = map(_entry, pictures)
    while chunk := list(itertools.islice(entries, _CHUNK)):
        file.write(_data_block(chunk, 'class="pictures"'))
    file.write(after)


def _entry(picture: Picture | Missing) -> dict[str, str]:
    """Entry for the page's script: `{missing}`, or `{url}`, with `jpeg` in base64 and `sha256` where it was read."""
    if isinstance(picture, Missing):
        return {"missing": picture.reason}
    if picture.thumbnail is None:
        return {"url": picture.url}
    jpeg = base64.b64encode(picture.thumbnail.jpeg).decode()
    return {"url": picture.url, "sha256": picture.thumbnail.sha256, "jpeg": jpeg}


def _data_block(data: Any, attribute: str) -> bytes:
    """JSON inside a script element that is not run; no text in it can end the element or begin another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" {attribute}>{text}</script>\n'.encode()


def _template() -> tuple[bytes, bytes]:
    """The page before and after its data. Its pictures are data, and files where they are for the large view."""
    page = assembled_page("clipsieve.report", "page.html")
    policy = (
        f"default-src 'none'; img-src data: file: 'self'; style-src {element_hashes(page, 'style')}; "
        f"script-src {element_hashes(page, 'script')}; base-uri 'none'; form-action 'none'"
    )
    before, after = page.replace("{{policy}}", policy).split("{{data}}\n")
    return before.encode(), after.encode()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _utc(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="seconds")
