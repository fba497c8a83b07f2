from __future__ import annotations

from pathlib import Path

import pytest

from training.datasets import samples_in_class_folders
from training.errors import StepError

CLASSES = ["safe", "nsfw"]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_every_file_is_a_sample_of_its_folders_class(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/b.jpg", "safe/deep/a.png", "nsfw/c.webp")
    samples = samples_in_class_folders(tmp_path, CLASSES)
    assert [(sample.key, sample.label) for sample in samples] == [
        ("nsfw/c.webp", "nsfw"),
        ("safe/b.jpg", "safe"),
        ("safe/deep/a.png", "safe"),
    ]
    assert all(sample.path == (tmp_path / sample.key).resolve() for sample in samples)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "safe/.DS_Store", "safe/.thumbs/b.jpg", "nsfw/c.jpg", ".cache/d.jpg", "notes.txt")
    assert [sample.key for sample in samples_in_class_folders(tmp_path, CLASSES)] == ["nsfw/c.jpg", "safe/a.jpg"]


@pytest.mark.parametrize("names", [["safe/a.jpg"], ["safe/a.jpg", "nude/b.jpg"], ["safe/a.jpg", "nsfw/b", "cats/c"]])
def test_other_subfolders_are_refused_with_both_lists(tmp_path: Path, names: list[str]) -> None:
    _touch(tmp_path, *names)
    with pytest.raises(StepError) as error:
        samples_in_class_folders(tmp_path, CLASSES)
    assert f"found:    {', '.join(sorted(name.split('/')[0] for name in names))}" in str(error.value)
    assert "expected: nsfw, safe" in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="nowhere: no such folder"):
        samples_in_class_folders(tmp_path / "nowhere", CLASSES)


def test_empty_class_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "safe").mkdir()
    (tmp_path / "nsfw").mkdir()
    with pytest.raises(StepError, match="no files in safe, nsfw"):
        samples_in_class_folders(tmp_path, CLASSES)
