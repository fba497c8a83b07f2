"""Orders scored files by their times of modification: the highest score becomes the newest file.

    touch(rows, record)    gives the times, and keeps those from before in a record
    undo_touch(record)     gives the old times back

`plan_touches` says which times, and changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipsieve.arrange import Arranged, ScoredRow, shown
from clipsieve.exceptions import ArrangeError
from clipsieve.paths import path_from_text, text_from_path

_STEP_NS = 1_000_000_000
_SAME_NS = 2_000_000_000  # some file systems keep times only to two seconds


@dataclass(frozen=True)
class Touch:
    """A file gets a time of modification (ns since 1970)."""

    path: str
    mtime_ns: int

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.mtime_ns / 1e9))
        return f"touch {when} {shown(self.path)}"


def plan_touches(rows: Iterable[ScoredRow], newest_ns: int, reverse: bool = False) -> tuple[list[Touch], int]:
    """Times one second apart, the highest score's the newest; equal scores keep their order, so the first is newer.

    In reverse the lowest score's is the newest. A path that comes twice counts with its highest score. Also returns how
    many rows have no score.
    """
    scores: dict[str, float] = {}
    unscored = 0
    for path, score, _ in rows:
        if score is None or math.isnan(score):
            unscored += 1
            continue
        where = os.path.abspath(path)
        scores[where] = max(score, scores.get(where, -math.inf))
    order = sorted(scores, key=lambda path: scores[path] if reverse else -scores[path])
    return [Touch(path, newest_ns - place * _STEP_NS) for place, path in enumerate(order)], unscored


def touch(
    rows: Iterable[ScoredRow],
    record: Path,
    *,
    newest_s: float | None = None,
    dry_run: bool = False,
    reverse: bool = False,
) -> Arranged[Touch]:
    """Order files by their scores through their times of modification.

    Args:
        record: a JSON file for the times before, written before any file is touched. One that is there is
            continued: it keeps the times from before its first run.
        newest_s: time of the newest file, seconds since 1970; by default now.
        reverse: the lowest score becomes the newest file.

    Raises:
        ArrangeError: `record` cannot be read or written.
    """
    touches, unscored = plan_touches(rows, time.time_ns() if newest_s is None else round(newest_s * 1e9), reverse)
    done = Arranged[Touch](unscored=unscored)
    times = _read_record(record) if record.exists() else {}
    planned = _with_times_before(touches, times, done)
    if dry_run:
        done.actions.extend(planned)
        return done
    _write_record(record, times)
    for each in planned:
        if _set_mtime(each, done):
            done.actions.append(each)
            times[each.path] = _Times(times[each.path].before_ns, [each.mtime_ns])
    _write_record(record, times)
    return done


def undo_touch(record: Path, *, dry_run: bool = False) -> Arranged[Touch]:
    """Give the files of a record their old times back; the record itself is kept.

    A file that was changed since it was touched keeps its time, and is among `failed`.

    Raises:
        ArrangeError: `record` cannot be read.
    """
    done = Arranged[Touch]()
    for path, times in _read_record(record).items():
        try:
            now_ns = os.stat(path).st_mtime_ns
        except OSError as error:
            done.failed.append((path, error.strerror or str(error)))
            continue
        if now_ns == times.before_ns:
            done.already += 1
        elif not times.were_given(now_ns):
            done.failed.append((path, "changed since it was touched"))
        elif dry_run or _set_mtime(Touch(path, times.before_ns), done):
            done.actions.append(Touch(path, times.before_ns))
    return done


@dataclass(frozen=True)
class _Times:
    """Times of one file: when it was modified, and every time that it may have been given instead."""

    before_ns: int
    given_ns: list[int]

    def were_given(self, mtime_ns: int) -> bool:
        return any(abs(mtime_ns - given) < _SAME_NS for given in self.given_ns)


def _with_times_before(touches: list[Touch], times: dict[str, _Times], done: Arranged[Touch]) -> list[Touch]:
    """The touches of files that are there, one for each file; adds their times to `times`."""
    planned: list[Touch] = []
    seen: set[tuple[int, int]] = set()
    for each in touches:
        try:
            status = os.stat(each.path)
        except (OSError, ValueError) as error:
            done.failed.append((each.path, getattr(error, "strerror", None) or str(error)))
            continue
        if (status.st_dev, status.st_ino) in seen:  # another name of a file with a higher score
            done.already += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        earlier = times.get(each.path)
        if earlier is not None and (earlier.were_given(status.st_mtime_ns) or status.st_mtime_ns == earlier.before_ns):
            times[each.path] = _Times(earlier.before_ns, [*earlier.given_ns, each.mtime_ns])
        else:
            times[each.path] = _Times(status.st_mtime_ns, [each.mtime_ns])
        planned.append(each)
    return planned


def _set_mtime(action: Touch, done: Arranged[Touch]) -> bool:
    try:
        os.utime(action.path, ns=(os.stat(action.path).st_atime_ns, action.mtime_ns))
    except (OSError, OverflowError) as error:
        done.failed.append((action.path, getattr(error, "strerror", None) or str(error)))
        return False
    return True


def _read_record(record: Path) -> dict[str, _Times]:
    try:
        files = json.loads(record.read_text(encoding="utf-8"))["files"]
        return {
            path_from_text(each["path"]): _Times(int(each["before_ns"]), [int(given) for given in each["given_ns"]])
            for each in files
        }
    except OSError as error:
        raise ArrangeError(f"{record}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArrangeError(f"{record}: not a record of times ({error!r}); give another file") from error


def _write_record(record: Path, times: Mapping[str, _Times]) -> None:
    files = [
        {"path": text_from_path(path), "before_ns": each.before_ns, "given_ns": each.given_ns}
        for path, each in times.items()
    ]
    partial = record.with_name(f".{record.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
        partial.replace(record)
    except OSError as error:
        raise ArrangeError(f"{record}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
