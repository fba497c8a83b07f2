"""From what the user named to files, and from a file to its bytes."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator

from clipsieve._exceptions import ImageRejected

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"})

MAX_IMAGE_BYTES = 64 * 2**20
"""A larger file is not read: it keeps memory bounded when a disk image lies between the photos."""


def find_images(paths: Iterable[str], pattern: str | None = None) -> list[str]:
    """Files to score: each path itself, or if it is a folder the images below it.

    Args:
        paths: files are taken whatever their suffix, also when they do not exist (reading them then
            makes an error row); folders are walked in sorted order, without following linked folders.
        pattern: take the files of a folder that match it instead of those with an image suffix. It is
            matched against the file's name or, if it has a slash, against the path inside the folder.

    Folders that cannot be listed are returned themselves, so that they end up as a row with an error.
    """
    return [file for path in paths for file in (_walk(path, pattern) if os.path.isdir(path) else [path])]


def paths_from_list(data: bytes) -> list[str]:
    """Paths in a list as `find` or `find -print0` writes it; NUL-separated if there is a NUL in it."""
    if b"\0" in data:
        return [os.fsdecode(entry) for entry in data.split(b"\0") if entry]
    lines = (line.removesuffix(b"\r") for line in data.split(b"\n"))
    return [os.fsdecode(line) for line in lines if line]


def read_image(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes.

    Raises:
        ImageRejected: UNREADABLE (missing, forbidden, a folder, a pipe) or TOO_MANY_BYTES.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            _check_readable(os.fstat(file.fileno()))
            return file.readall()
    except (OSError, ValueError) as error:
        raise ImageRejected("UNREADABLE", getattr(error, "strerror", None) or str(error)) from None


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe is then opened at once, and refused, instead of waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_readable(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageRejected("UNREADABLE", "not a regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageRejected("TOO_MANY_BYTES", f"{status.st_size} bytes; at most {MAX_IMAGE_BYTES} are sent")


def _walk(folder: str, pattern: str | None) -> Iterator[str]:
    unlisted: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(error.filename)):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            if _matches(os.path.relpath(path, folder) if pattern and "/" in pattern else name, pattern):
                yield path
    yield from unlisted


def _matches(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    return fnmatch.fnmatchcase(name, pattern)
