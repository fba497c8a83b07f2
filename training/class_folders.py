"""Reads images that lie in a folder per class, or in such folders below train/, val/ and test/.

photos/safe/…, photos/nsfw/…                       the classes
photos/train/safe/…, photos/val/…, photos/test/…   the split as well: training.sample.split_called has the names
"""

from __future__ import annotations

import os
from pathlib import Path

from clipsieve.paths import text_from_path
from training.errors import StepError
from training.files_below import dangling_link, files_below, reason_to_pass_over
from training.labels import class_called, normalised
from training.sample import DataSet, Sample, split_called


def samples_in_class_folders(folder: Path, class_names: list[str]) -> DataSet:
    """Every file below `folder`/<class name>/, sorted by key.

    Names of folders are matched as `training.labels` matches labels. Links to folders are followed; what
    `training.files_below` passes over is counted.

    Raises:
        StepError: the subfolders are not exactly the classes, nor splits with such subfolders, or hold no file.
    """
    if not folder.is_dir():
        raise StepError(f"{folder}: no such folder; --data is a folder with one subfolder per class")
    data = DataSet([], f"folders {text_from_path(str(folder.resolve()))}")
    names = _subfolders(folder, data)
    if not has_class_folders(names, class_names) and names and all(map(split_called, names)):
        data.notes.append(f"split: from the folders {', '.join(names)}")
        classes_of = {name: _subfolders(folder / name, data) for name in names}
        for name, classes in classes_of.items():
            _check_classes(folder / name, classes, class_names, some=True)
        _check_classes(folder, sorted({name for classes in classes_of.values() for name in classes}), class_names)
        for name, classes in classes_of.items():
            _add(folder, [os.path.join(name, each) for each in classes], class_names, data, split_called(name))
    else:
        _check_classes(folder, names, class_names)
        _add(folder, names, class_names, data)
    if not data.samples:
        raise StepError(f"{folder}: no files in {', '.join(class_names)}; put images of each class there")
    data.samples.sort(key=lambda sample: sample.key)
    return data


def has_class_folders(names: list[str], class_names: list[str]) -> bool:
    """Return True if the subfolders are exactly the classes."""
    return {class_called(name, class_names) for name in names} == set(class_names)


def subfolder_names(folder: Path) -> list[str]:
    """Names of the subfolders that may be classes or splits, in order; links are followed."""
    return _subfolders(folder, DataSet([], ""))


def _subfolders(folder: Path, data: DataSet) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_folder = entry.is_dir()
            reason = reason_to_pass_over(entry.name, is_folder)
            if reason is None and is_folder:
                names.append(entry.name)
            elif reason is None and entry.is_symlink() and not entry.is_file():
                data.failures.append(dangling_link(entry.path))
            else:
                data.pass_over(reason or "files beside the folders of the classes")
    return names


def _check_classes(folder: Path, names: list[str], class_names: list[str], some: bool = False) -> None:
    """
    Args:
        some: they need not be all.

    Raises:
        StepError: a subfolder is no class, or a class has none.
    """
    called = {class_called(name, class_names) for name in names}
    if called == set(class_names) or (some and called and called < set(class_names)):
        return
    raise StepError(
        f"{text_from_path(str(folder))}: its subfolders must be the head's class_names.\n"
        f"  found:    {', '.join(map(text_from_path, names)) or 'none'}\n"
        f"  expected: {', '.join(sorted(class_names))}\n"
        f"{_hint(names, class_names)}"
        "Rename the subfolders, or the class_names in the recipe; folders of splits are train, val and test."
    )


def _hint(names: list[str], class_names: list[str]) -> str:
    """Names that differ in case alone."""
    by_case = {normalised(name).casefold(): name for name in class_names}
    pairs = [(name, by_case.get(normalised(name).casefold())) for name in names]
    close = [f"{name} is not {match}" for name, match in pairs if match and class_called(name, class_names) is None]
    return f"Upper and lower case differ: {', '.join(close)}.\n" if close else ""


def _add(folder: Path, places: list[str], class_names: list[str], data: DataSet, split: str | None = None) -> None:
    root = folder.resolve()
    for place in places:
        label = class_called(os.path.basename(place), class_names)
        listing = files_below(root / place)
        data.failures.extend(listing.failures)
        for reason, count in listing.passed_over.items():
            data.pass_over(reason, count)
        for path in listing.paths:
            relative = os.path.join(place, path)
            data.samples.append(Sample(text_from_path(relative), root / relative, label, split))
