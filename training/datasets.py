"""Reads labelled images where they lie: today one folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.errors import StepError


@dataclass(frozen=True)
class Sample:
    """One image file, not yet opened."""

    key: str
    """The file's place within the data set, with forward slashes: `round/00001.jpg`."""
    path: Path
    label: str | None
    split: str | None = None
    """The split that the data set itself prescribes, if it does."""


def samples_in_class_folders(folder: Path, class_names: list[str]) -> list[Sample]:
    """Every file below `folder`/<class name>/, sorted by key; names that begin with a dot are skipped.

    Raises:
        StepError: the subfolders are not exactly the classes, or hold no file.
    """
    if not folder.is_dir():
        raise StepError(f"{folder}: no such folder; --data is a folder with one subfolder per class")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if found != sorted(class_names):
        raise StepError(
            f"{folder}: its subfolders must be the head's class_names.\n"
            f"  found:    {', '.join(found) or 'none'}\n"
            f"  expected: {', '.join(sorted(class_names))}\n"
            "Rename the subfolders, or the class_names in the recipe."
        )
    samples = [_sample(folder, path, name) for name in class_names for path in _files_below(folder / name)]
    if not samples:
        raise StepError(f"{folder}: no files in {', '.join(class_names)}; put images of each class there")
    return sorted(samples, key=lambda sample: sample.key)


def _files_below(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _sample(folder: Path, path: Path, label: str) -> Sample:
    return Sample(key=path.relative_to(folder).as_posix(), path=path.resolve(), label=label)
