"""Finds the paths of images in what the user named, one after the other: they are never held as one list.

A folder's names are sorted, so it is listed before its first image is sent; they are kept as a compact array.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np

from clipsieve.exceptions import InputRefused
from clipsieve.images import ImageSource
from clipsieve.lists import is_list, items_in_table
from clipsieve.passed_over import LINKED_FOLDER, PassedOver, reason_to_pass_over
from clipsieve.shards import IMAGE_EXTENSIONS

IMAGE_SUFFIXES = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS)

MORE_SUFFIXES = {"HEIC": (".heic", ".heif", ".hif"), "TIFF": (".tif", ".tiff")}
"""Suffixes of the formats that only some servers take, by the names that they say."""

_PIECE = 4096  # names, or bytes of a list on stdin
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Inputs:
    """The inputs that the user named.

    Args:
        paths: image files, folders, patterns such as `photos/**/*.png`, lists (.csv, .tsv, .parquet, .jsonl, .json,
            .txt) or `-`.
        pattern: take the files of a folder that match it instead of those with an image suffix. It is
            matched against the file's name or, if it has a slash, against the path inside the folder.
        column: of a list, the column with the paths.
    """

    paths: tuple[str, ...]
    pattern: str | None = None
    column: str | None = None
    suffixes: frozenset[str] = IMAGE_SUFFIXES
    """Suffixes of the files in folders that are taken where there is no pattern."""
    passed_over: PassedOver = field(default_factory=PassedOver, compare=False)
    """Counts of what the folders hold besides; complete once all inputs were given."""

    def taking(self, formats: Iterable[str]) -> Inputs:
        """The same inputs for a server that takes these formats."""
        more = (suffix for name in formats for suffix in MORE_SUFFIXES.get(name, ()))
        return replace(self, suffixes=IMAGE_SUFFIXES.union(more))

    def __iter__(self) -> Iterator[str]:
        """Names of the inputs, as `items` gives them."""
        return (name for name, _ in self.items())

    def items(self) -> Iterator[tuple[str, ImageSource]]:
        """Each image's name and the image, in the order given. The image is its path, or the bytes that a table holds.

        Named files are taken whatever their suffix, also when they do not exist: reading them then makes an error
        row. So is a folder that cannot be listed. Folders are walked in sorted order; linked ones are not followed.

        Raises:
            InputRefused: a list cannot be read, or a pattern matches nothing.
        """
        self.passed_over.clear()
        for path in self.paths:
            if path == "-":
                yield from _as_items(file for named in paths_from_stdin() for file in self._expanded(named))
            elif is_list(path) and not os.path.isdir(path):
                yield from items_in_table(path, self.column)
            elif _is_pattern(path):
                yield from _as_items(self._matching(path))
            else:
                yield from _as_items(self._expanded(path))

    def _expanded(self, path: str) -> Iterator[str]:
        return _walk(path, self) if os.path.isdir(path) else iter((path,))

    def _matching(self, pattern: str) -> Iterator[str]:
        parts = pattern.split("/")
        path = None
        for path in _glob("", parts):
            if "**" not in parts or not os.path.isdir(path):  # folders within ** are reached anyway
                yield from self._expanded(path)
        if path is None:
            raise InputRefused(f"no file matches {pattern!r}")


def _as_items(paths: Iterable[str]) -> Iterator[tuple[str, ImageSource]]:
    return ((path, path) for path in paths)


def paths_from_stdin() -> Iterator[str]:
    try:
        # Not sys.stdin.buffer: a thread that waits in it would hold its lock when the interpreter ends.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
            yield from paths_from_list(raw)
    except OSError:  # what stands for stdin in a notebook or a test has no descriptor
        try:
            yield from paths_from_list(sys.stdin.buffer)
        except OSError as error:
            raise InputRefused(f"standard input cannot be read: {error.strerror or error}") from None


def paths_from_list(file: BinaryIO) -> Iterator[str]:
    """Paths in a list as `find` or `find -print0` writes it, as they come.

    It is NUL-separated if there is a NUL in its first part, which is longer than any path.

    Raises:
        InputRefused: a NUL comes later, in a list that has lines.
    """
    data = _first_part(file).removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in data else b"\n"
    while data:
        *entries, rest = data.split(separator)
        yield from _paths(entries, separator)
        piece = file.read(_PIECE)
        if not piece:
            yield from _paths([rest], separator)
        data = rest + piece if piece else b""


def _first_part(file: BinaryIO) -> bytes:
    """Read up to the first NUL, or a whole line when the list is slow to come, or more than any path."""
    data = b""
    while b"\0" not in data and not data.endswith(b"\n") and len(data) <= 2 * _LONGEST_PATH:
        piece = file.read(_PIECE)
        if not piece:
            break
        data += piece
    return data


def _paths(entries: Iterable[bytes], separator: bytes) -> Iterator[str]:
    for entry in entries:
        if separator == b"\n":
            entry = entry.removesuffix(b"\r")
            if b"\0" in entry:
                raise InputRefused("the list on stdin has lines and then a NUL; separate the paths by one of the two")
        if entry:
            yield os.fsdecode(entry)


def _walk(folder: str, inputs: Inputs) -> Iterator[str]:
    left = [folder]
    while left:
        parent = left.pop()
        try:
            names, folders = _listed(parent, folder, inputs)
        except OSError:
            yield parent
            continue
        for name in names:
            yield os.path.join(parent, os.fsdecode(name))
        left += [os.path.join(parent, os.fsdecode(name)) for name in folders[::-1]]


def _listed(parent: str, top: str, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Sorted names, as bytes, of the files to take and of the folders to walk."""
    pattern, passed_over = inputs.pattern, inputs.passed_over
    files, folders = _Names(), _Names()
    inside = os.path.relpath(parent, top) if pattern and "/" in pattern else ""
    with os.scandir(parent) as entries:
        for entry in entries:
            reason = reason_to_pass_over(entry.name) if pattern is None else None
            if _is_folder(entry):
                if entry.is_symlink():
                    passed_over.add(LINKED_FOLDER)
                elif reason is None:
                    folders.add(entry.name)
                else:
                    passed_over.add(reason)
            elif reason is None and is_wanted(entry.name, inputs, inside):
                files.add(entry.name)
            else:
                passed_over.add(reason or passed_over.kind_of(entry.name, pattern))
    return files.sorted(), folders.sorted()


class _Names:
    """Many names in little memory."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._names: list[bytes] = []

    def add(self, name: str) -> None:
        self._names.append(os.fsencode(name))
        if len(self._names) == _PIECE:
            self._pieces.append(np.array(self._names))
            self._names = []

    def sorted(self) -> np.ndarray:
        names = np.concatenate([*self._pieces, np.array(self._names, dtype=np.bytes_)])
        names.sort()
        return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_wanted(name: str, inputs: Inputs, inside: str) -> bool:
    """True for a file that a folder's walk takes.

    Args:
        inside: the folder's path within the one that was named.
    """
    pattern = inputs.pattern
    if pattern is None:
        return os.path.splitext(name)[1].lower() in inputs.suffixes
    return fnmatch.fnmatchcase(os.path.normpath(os.path.join(inside, name)) if "/" in pattern else name, pattern)


def _is_pattern(path: str) -> bool:
    """A name that is there is that file, also when it has brackets."""
    return any(character in path for character in "*?[") and not os.path.lexists(path)


def _glob(base: str, parts: list[str]) -> Iterator[str]:
    """Sorted; `**` stands for any number of folders."""
    if not parts:
        yield base
        return
    part, *rest = parts
    if part == "**":
        yield from _glob(base, rest or ["*"])
        for name in _names_in(base, folders_only=True):
            yield from _glob(os.path.join(base, name), parts)
    elif any(character in part for character in "*?["):
        for name in _names_in(base, folders_only=bool(rest)):
            if fnmatch.fnmatchcase(name, part):
                yield from _glob(os.path.join(base, name), rest)
    else:
        path = os.path.join(base, part) if base or part else "/"
        if os.path.lexists(path):
            yield from _glob(path, rest)


def _names_in(folder: str, folders_only: bool) -> Iterator[str]:
    names = _Names()
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if not folders_only or (_is_folder(entry) and not entry.is_symlink()):
                    names.add(entry.name)
    except OSError:
        return
    for name in names.sorted():
        yield os.fsdecode(name)
