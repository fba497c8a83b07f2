"""Links scored files into a folder per band, `folder/allow/cat.jpg`; nothing is moved, deleted or replaced.

`plan_links` says which links, from the rows and the names that are there, and changes nothing; `link` makes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipsieve.arrange import Arranged, Scored, ScoredRow, shown
from clipsieve.exceptions import ArrangeError

_MOST_NAME_BYTES = 255


@dataclass(frozen=True)
class Link:
    """A symbolic link is made."""

    path: str
    """The place of the link."""
    target: str
    """The link's text: where the file is."""

    def __str__(self) -> str:
        return f"link {shown(self.path)} -> {shown(self.target)}"


def plan_links(
    rows: Iterable[ScoredRow], existing: Mapping[str, str | None], relative_to: Path | None
) -> Arranged[Link]:
    """Plan a link for each file, in a folder named for its band.

    A name that another file has already is made unique by the start of its path's SHA-256: `cat-1f2e3d4c.jpg`.

    Args:
        existing: names that are there in the folder (`allow/cat.jpg`), with the file each links to, None for
            what is no link.
        relative_to: the folder, for links that say where the file is from there; None for absolute ones.

    Raises:
        ArrangeError: a band's name cannot be a folder's, such as `../up`.
    """
    plan = Arranged[Link]()
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
            text = target if relative_to is None else os.path.relpath(target, relative_to / band)
            plan.actions.append(Link(name, text))
        linked[target] = band
    plan.elsewhere = [
        name for name, target in existing.items() if linked.get(target or "", _band_of(name)) != _band_of(name)
    ]
    return plan


def link(rows: Iterable[ScoredRow], folder: Path, *, relative: bool = True, dry_run: bool = False) -> Arranged[Link]:
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
    plan.actions = [action for action in plan.actions if _make_link(real, action, plan)]
    return plan


def _make_link(folder: Path, action: Link, plan: Arranged[Link]) -> bool:
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
    existing: dict[str, str | None] = {}
    if not folder.is_dir():
        return existing
    for band in folder.iterdir():
        if band.is_symlink() or not band.is_dir():
            continue
        for entry in os.scandir(band):
            text = os.readlink(entry.path) if entry.is_symlink() else None
            target = None if text is None else _real(os.path.join(band, text))
            existing[f"{band.name}/{entry.name}"] = target
    return existing


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
