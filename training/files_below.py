"""Lists the files of a folder that may be images, and counts what else lies there.

Links to folders are followed, each folder once. What is passed over is counted by its reason: hidden files, what
macOS, Windows and network disks leave behind, and files beside images, such as captions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from clipsieve.paths import text_from_path
from training.sample import Failure

_LEFT_BY_SYSTEMS = {
    "__macosx": "__MACOSX folders of macOS",
    ".ds_store": ".DS_Store files of macOS",
    "@eadir": "@eaDir folders of a network disk",
    "#recycle": "#recycle folders of a network disk",
    "thumbs.db": "Thumbs.db files of Windows",
    "desktop.ini": "desktop.ini files of Windows",
    "$recycle.bin": "$RECYCLE.BIN folders of Windows",
}
_BESIDE_IMAGES = frozenset(
    f".{suffix}"
    for suffix in (
        *("txt", "caption", "json", "jsonl", "csv", "tsv", "xml", "yaml", "yml", "md", "html", "log"),
        *("xmp", "aae", "ini", "db", "npy", "npz", "parquet"),
    )
)


@dataclass
class Listing:
    """The files below a folder."""

    paths: list[str] = field(default_factory=list)
    """Relative to the folder, with forward slashes, as the file system has them."""
    failures: list[Failure] = field(default_factory=list)
    """DANGLING_LINK, UNREADABLE (a folder that cannot be listed) and NOT_A_FILE."""
    passed_over: dict[str, int] = field(default_factory=dict)

    def pass_over(self, reason: str) -> None:
        self.passed_over[reason] = self.passed_over.get(reason, 0) + 1


def files_below(folder: Path) -> Listing:
    """Every file below a folder that may be an image, in the order of the names; files before folders."""
    listing = Listing()
    _list(str(folder), "", set(), listing)
    return listing


def reason_to_pass_over(name: str, is_folder: bool) -> str | None:
    """Return why a name is not meant as an image or a class; None for the others."""
    reason = _LEFT_BY_SYSTEMS.get(name.lower())
    if reason is not None:
        return reason
    if name.startswith("._") and not is_folder:
        return "._ files of macOS"
    if name.startswith("."):
        return "hidden folders" if is_folder else "hidden files"
    suffix = os.path.splitext(name)[1].lower()
    return f"{suffix} files" if suffix in _BESIDE_IMAGES and not is_folder else None


def dangling_link(path: str) -> Failure:
    """The failure of a link whose file is not there."""
    target = text_from_path(os.readlink(path))
    problem = f"links to {target}, which is not there; mount or fetch it, or remove the link"
    return Failure(text_from_path(path), "DANGLING_LINK", problem)


def _list(root: str, relative: str, seen: set[tuple[int, int]], listing: Listing) -> None:
    folder = os.path.join(root, relative)
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problem = f"the folder cannot be listed: {error.strerror}"
        listing.failures.append(Failure(text_from_path(folder), "UNREADABLE", problem))
        return
    if (status.st_dev, status.st_ino) in seen:
        listing.pass_over("links to folders that were read before")
        return
    seen.add((status.st_dev, status.st_ino))
    folders = [entry for entry in ordered if not _add_file(entry, relative, listing)]
    for entry in sorted(folders, key=lambda entry: entry.is_symlink()):  # a folder itself before links to it
        _list(root, os.path.join(relative, entry.name), seen, listing)


def _add_file(entry: os.DirEntry[str], relative: str, listing: Listing) -> bool:
    """Take in an entry; False for a folder, which is still to be read."""
    is_folder = entry.is_dir()
    reason = reason_to_pass_over(entry.name, is_folder)
    if reason is not None:
        listing.pass_over(reason)
    elif is_folder:
        return False
    elif entry.is_file():
        listing.paths.append(os.path.join(relative, entry.name))
    elif entry.is_symlink():
        listing.failures.append(dangling_link(entry.path))
    else:
        listing.failures.append(Failure(text_from_path(entry.path), "NOT_A_FILE", "neither a file nor a folder"))
    return True
