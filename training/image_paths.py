r"""Finds the files that the paths of a table mean, below one folder.

A path is first taken as it is written. Only where no file has it, other readings are tried:

    angular\1.jpg              Windows' separators
    C:\photos\angular\1.jpg    a path of another machine: the longest end of it that is a file below the folder
    angular/1                  without a suffix: the only file of that name and a suffix
    1                          below an image root, in whatever folder, where only one file has the name
    café.jpg                   the other of Unicode's two compositions

The last part of a name that is not UTF-8 is read as `clipsieve.paths` writes it.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from clipsieve.inputs import IMAGE_SUFFIXES
from clipsieve.paths import text_from_path
from training.files_below import files_below


class ImagePaths:
    """The files below a folder, by what a table calls them."""

    def __init__(self, folder: Path, is_image_root: bool) -> None:
        """
        Args:
            folder: what relative paths are relative to.
            is_image_root: it holds nothing but the images, so that a name may be looked for in all of it.
        """
        self._folder = folder.resolve()
        self._everywhere = is_image_root
        self._stems_of: dict[Path, dict[str, list[str]]] = {}
        self.other_readings: dict[str, int] = {}
        """How many paths were no file as they are written, by what found it."""

    def find(self, text: str) -> tuple[str, Path]:
        """The key and the file that a path means; as it is written, where nothing is there.

        Raises:
            LookupError: several files may be meant.
        """
        path = self._folder / text
        if self._may_be_misspelt(text) and not os.path.lexists(path):
            for reading, candidate in self._readings(text):
                if os.path.lexists(candidate):
                    self.other_readings[reading] = self.other_readings.get(reading, 0) + 1
                    return self._key(candidate), candidate
        return text_from_path(PurePosixPath(text).as_posix()), path.resolve() if ".." in path.parts else path

    def _may_be_misspelt(self, text: str) -> bool:
        return (
            "\\" in text
            or not text.isascii()
            or text != text.strip()
            or (self._everywhere and os.path.isabs(text))
            or not self._has_suffix(text)
        )

    def _readings(self, text: str) -> Iterator[tuple[str, Path]]:
        text = text.strip()
        yield "without spaces around", self._folder / text
        if not text.isascii():
            for form in ("NFC", "NFD"):
                yield "in another of Unicode's compositions", self._folder / unicodedata.normalize(form, text)
        windows = PureWindowsPath(text)
        if "\\" in text and not windows.is_absolute():
            text = windows.as_posix()
            yield "with backslashes", self._folder / text
        if windows.drive or os.path.isabs(text):
            parts = (windows if windows.drive else PurePosixPath(text)).parts
            for start in range(1, len(parts)):
                yield "of another machine, by their last parts", self._folder.joinpath(*parts[start:])
        if not self._has_suffix(text):
            yield from self._without_suffix(text)

    def _without_suffix(self, text: str) -> Iterator[tuple[str, Path]]:
        path = self._folder / text
        names = self._beside(path.parent).get(path.name, [])
        paths = [path.parent / name for name in names]
        if not paths and self._everywhere and "/" not in text:
            paths = self._below.get(text, [])
        if len(paths) > 1:
            shown = ", ".join(self._key(path) for path in paths[:3])
            more = " …" if len(paths) > 3 else ""
            raise LookupError(f"{text!r} may be {shown}{more}; write the suffix and the folder")
        for path in paths:
            yield "without a suffix", path

    def _beside(self, folder: Path) -> dict[str, list[str]]:
        """Names of the images in a folder, by their stems."""
        if folder not in self._stems_of:
            stems: dict[str, list[str]] = {}
            for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
                if self._has_suffix(name):
                    stems.setdefault(os.path.splitext(name)[0], []).append(name)
            self._stems_of[folder] = stems
        return self._stems_of[folder]

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        """All images below the folder, by their stems."""
        stems: dict[str, list[Path]] = {}
        for relative in files_below(self._folder).paths:
            if self._has_suffix(relative):
                path = self._folder / relative
                stems.setdefault(path.stem, []).append(path)
        return stems

    def _key(self, path: Path) -> str:
        relative = path.relative_to(self._folder) if path.is_relative_to(self._folder) else path
        return text_from_path(relative.as_posix())

    def _has_suffix(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
