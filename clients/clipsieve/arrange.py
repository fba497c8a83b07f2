"""Arranges scored files where a file browser shows it: by their times, or as links in a folder per band.

    touch(rows, record)    the highest score becomes the newest file; undo_touch(record) gives the old times back
    link(rows, folder)     folder/allow/cat.jpg → the file; nothing is moved, deleted or replaced

Both make a plan from the rows and the state of the disk (`plan_touches`, `plan_links`: no file is changed there),
which `dry_run` returns without doing it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipsieve.exceptions import ArrangeError
from clipsieve.paths import path_from_text, text_from_path

_STEP_NS = 1_000_000_000
_SAME_NS = 2_000_000_000  # some file systems keep times only to two seconds
_MOST_NAME_BYTES = 255


def shown(path: str) -> str:
    """A path on one line of a terminal, without what a terminal would obey."""
    text = text_from_path(path)
    return text if text.isprintable() else repr(text)


class Scored(NamedTuple):
    """One row of a result."""

    path: str
    score: float | None
    """None, or NaN, when the file could not be scored."""
    band: str | None
    """`allow`, `review`, `block` or the name of a class; None when there is none."""


ScoredRow = Scored | tuple[str, float | None, str | None]
"""A file to arrange: path, score and band."""


@dataclass(frozen=True)
class Touch:
    """A file gets a time of modification (ns since 1970)."""

    path: str
    mtime_ns: int

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.mtime_ns / 1e9))
        return f"touch {when} {shown(self.path)}"


@dataclass(frozen=True)
class Link:
    """A symbolic link is made."""

    path: str
    """Of the link."""
    target: str
    """What the link says."""

    def __str__(self) -> str:
        return f"link {shown(self.path)} -> {shown(self.target)}"


@dataclass
class Arranged:
    """What was done, or with `dry_run` would be."""

    actions: list[Touch | Link] = field(default_factory=list)
    already: int = 0
    """Links that were there before."""
    unscored: int = 0
    """Rows without a score, or for links without a band: left alone."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each file that could not be arranged."""
    elsewhere: list[str] = field(default_factory=list)
    """Links in another band to a file that has just been linked: of an earlier run, with other scores."""

    def __str__(self) -> str:
        text = f"{len(self.actions)} arranged, {self.already} already so"
        text += f", {self.unscored} without a score left alone" if self.unscored else ""
        text += f", {len(self.failed)} failed" if self.failed else ""
        return text + (f", {len(self.elsewhere)} old links in other bands" if self.elsewhere else "")


# Times


def plan_touches(rows: Iterable[ScoredRow], newest_ns: int) -> tuple[list[Touch], int]:
    """Times one second apart, the highest score's the newest; equal scores keep their order, so the first is newer.

    A path that comes twice counts with its highest score. Also returns how many rows have no score.
    """
    scores: dict[str, float] = {}
    unscored = 0
    for path, score, _ in rows:
        if score is None or math.isnan(score):
            unscored += 1
            continue
        where = os.path.abspath(path)
        scores[where] = max(score, scores.get(where, -math.inf))
    order = sorted(scores, key=lambda path: -scores[path])
    return [Touch(path, newest_ns - place * _STEP_NS) for place, path in enumerate(order)], unscored


def touch(rows: Iterable[ScoredRow], record: Path, *, newest_s: float | None = None, dry_run: bool = False) -> Arranged:
    """Order files by their scores through their times of modification.

    Args:
        record: a JSON file for the times before, written before any file is touched. One that is there is
            continued: it keeps the times from before its first run.
        newest_s: time of the highest score, seconds since 1970; by default now.

    Raises:
        ArrangeError: `record` cannot be read or written.
    """
    touches, unscored = plan_touches(rows, time.time_ns() if newest_s is None else round(newest_s * 1e9))
    done = Arranged(unscored=unscored)
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


def undo_touch(record: Path, *, dry_run: bool = False) -> Arranged:
    """Give the files of a record their old times back; the record itself is kept.

    A file that was changed since it was touched keeps its time, and is among `failed`.

    Raises:
        ArrangeError: `record` cannot be read.
    """
    done = Arranged()
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
    """Of one file: when it was modified, and every time that it may have been given instead."""

    before_ns: int
    given_ns: list[int]

    def were_given(self, mtime_ns: int) -> bool:
        return any(abs(mtime_ns - given) < _SAME_NS for given in self.given_ns)


def _with_times_before(touches: list[Touch], times: dict[str, _Times], done: Arranged) -> list[Touch]:
    """The touches of files that are there, one for each file; adds their times to `times`."""
    planned: list[Touch] = []
    seen: set[tuple[int, int]] = set()
    for each in touches:
        try:
            found = os.stat(each.path)
        except (OSError, ValueError) as error:
            done.failed.append((each.path, getattr(error, "strerror", None) or str(error)))
            continue
        if (found.st_dev, found.st_ino) in seen:  # another name of a file with a higher score
            done.already += 1
            continue
        seen.add((found.st_dev, found.st_ino))
        known = times.get(each.path)
        if known is not None and (known.were_given(found.st_mtime_ns) or found.st_mtime_ns == known.before_ns):
            times[each.path] = _Times(known.before_ns, [*known.given_ns, each.mtime_ns])
        else:
            times[each.path] = _Times(found.st_mtime_ns, [each.mtime_ns])
        planned.append(each)
    return planned


def _set_mtime(action: Touch, done: Arranged) -> bool:
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


# Links


def plan_links(rows: Iterable[ScoredRow], existing: Mapping[str, str | None], relative_to: Path | None) -> Arranged:
    """A link for each file, in a folder named for its band.

    A name that another file has already is made unique by the start of its path's SHA-256: `cat-1f2e3d4c.jpg`.

    Args:
        existing: names that are there in the folder (`allow/cat.jpg`), with the file each links to, None for
            what is no link.
        relative_to: the folder, for links that say where the file is from there; None for absolute ones.

    Raises:
        ArrangeError: a band's name cannot be a folder's, such as `../up`.
    """
    plan = Arranged()
    taken = {name.casefold(): target for name, target in existing.items()}
    linked: dict[str, str] = {}
    for path, _, band in rows:
        if band is None:
            plan.unscored += 1
            continue
        _check_band(band)
        target = _real(path)
        name = _free_name(band, target, taken)
        if taken.get(name.casefold()) == target:
            plan.already += 1
        else:
            taken[name.casefold()] = target
            said = target if relative_to is None else os.path.relpath(target, relative_to / band)
            plan.actions.append(Link(name, said))
        linked[target] = band
    plan.elsewhere = [
        name for name, target in existing.items() if linked.get(target or "", _band_of(name)) != _band_of(name)
    ]
    return plan


def link(rows: Iterable[ScoredRow], folder: Path, *, relative: bool = True, dry_run: bool = False) -> Arranged:
    """Link files into a folder per band; running it again adds only what is missing.

    Args:
        relative: links that stay right when the whole tree moves, rather than absolute ones.

    Raises:
        ArrangeError: a band's name cannot be a folder's, or in its place is a link or a file.
    """
    rows = [Scored(*row) for row in rows]
    if folder.exists() and not folder.is_dir():
        raise ArrangeError(f"{folder} is not a folder; nothing was linked")
    for band in sorted({row.band for row in rows if row.band is not None}):
        _check_band(band)
        _check_folder(folder / band)
    real = Path(os.path.realpath(folder))
    gone = {row.path for row in rows if row.band is not None and not os.path.lexists(row.path)}
    plan = plan_links([row for row in rows if row.path not in gone], _existing(real), real if relative else None)
    plan.failed = [(path, "no such file") for path in sorted(gone)]
    if dry_run:
        return plan
    wanted, plan.actions = plan.actions, []
    for action in wanted:
        if isinstance(action, Link) and _make_link(real, action, plan):
            plan.actions.append(action)
    return plan


def _make_link(folder: Path, action: Link, plan: Arranged) -> bool:
    try:
        path = folder / action.path
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(action.target, path)
    except OSError as error:
        plan.failed.append((action.path, error.strerror or str(error)))
        return False
    return True


def _existing(folder: Path) -> dict[str, str | None]:
    """Names two levels down (`allow/cat.jpg`) and the files they link to."""
    found: dict[str, str | None] = {}
    if not folder.is_dir():
        return found
    for band in folder.iterdir():
        if band.is_symlink() or not band.is_dir():
            continue
        for entry in os.scandir(band):
            said = os.readlink(entry.path) if entry.is_symlink() else None
            target = None if said is None else _real(os.path.join(band, said))
            found[f"{band.name}/{entry.name}"] = target
    return found


def _real(path: str) -> str:
    """Absolute and without links in its folders; a link in the last place stays one."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def _free_name(band: str, target: str, taken: Mapping[str, str | None]) -> str:
    """The first of the target's names that is free or already its own."""
    base = os.path.basename(target)
    stem, suffix = os.path.splitext(base)
    digest = hashlib.sha256(os.fsencode(target)).hexdigest()
    for name in (base, *(_marked(stem, digest[:length], suffix) for length in (8, 16, 64))):
        place = f"{band}/{name}"
        if taken.get(place.casefold(), target) == target:
            return place
    raise ArrangeError(f"{band}: every name for {target!r} is taken; link into an empty folder")


def _marked(stem: str, mark: str, suffix: str) -> str:
    """`cat-1f2e3d4c.jpg`, no longer than a file's name may be."""
    room = _MOST_NAME_BYTES - len(os.fsencode(f"-{mark}{suffix}"))
    cut = os.fsencode(stem)[: max(room, 0)]
    return f"{os.fsdecode(cut)}-{mark}{suffix}"


def _band_of(name: str) -> str:
    return name.partition("/")[0]


def _check_band(band: str) -> None:
    if band in ("", ".", "..") or "/" in band or "\0" in band or os.sep in band:
        raise ArrangeError(f"a folder cannot be named {band!r}, as a band is; nothing was linked")


def _check_folder(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArrangeError(f"{path} is not a folder; nothing was linked. Link into an empty folder")
