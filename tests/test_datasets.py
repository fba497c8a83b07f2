from __future__ import annotations

from pathlib import Path

import pytest

from recipes.schema import Head
from training.datasets import detected_format, samples_in, samples_in_class_folders
from training.errors import StepError
from training.tables import Columns

CLASSES = ["safe", "nsfw"]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_every_file_is_a_sample_of_its_folders_class(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/b.jpg", "safe/deep/a.png", "nsfw/c.webp")
    samples = samples_in_class_folders(tmp_path, CLASSES).samples
    assert [(sample.key, sample.label) for sample in samples] == [
        ("nsfw/c.webp", "nsfw"),
        ("safe/b.jpg", "safe"),
        ("safe/deep/a.png", "safe"),
    ]
    assert all(sample.path == (tmp_path / sample.key).resolve() for sample in samples)


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "safe/.DS_Store", "safe/.thumbs/b.jpg", "nsfw/c.jpg", ".cache/d.jpg", "notes.txt")
    assert [sample.key for sample in samples_in_class_folders(tmp_path, CLASSES).samples] == [
        "nsfw/c.jpg",
        "safe/a.jpg",
    ]


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


def test_the_format_is_seen(tmp_path: Path) -> None:
    _touch(tmp_path, "photos/safe/a.jpg", "shards/a.tar", "labels.CSV", "npy/x.npy", "clip/img_emb/a.npy", "notes.txt")
    formats = {"photos": "folders", "shards": "shards", "shards/a.tar": "shards", "shards/*.tar": "shards"}
    assert {data: detected_format(str(tmp_path / data)) for data in formats} == formats
    assert detected_format(str(tmp_path / "labels.CSV")) == "table"
    for data in ("npy", "clip"):
        with pytest.raises(StepError, match=r"holds embeddings \(.*\); run python -m training\.ingest on it"):
            detected_format(str(tmp_path / data))
    with pytest.raises(StepError, match=r"neither a folder, a shard \(\.tar\) nor a table"):
        detected_format(str(tmp_path / "notes.txt"))
    with pytest.raises(StepError, match="nowhere: no such folder"):
        detected_format(str(tmp_path / "nowhere"))


def test_an_explicit_format_overrules_what_is_seen(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "nsfw/b.jpg", "old.tar")
    head = Head(name="nsfw", class_names=CLASSES)
    assert len(samples_in(str(tmp_path), head, Columns(), "folders").samples) == 2


def test_folders_cannot_label_every_task(tmp_path: Path) -> None:
    head = Head(name="tags", task="multilabel", class_names=CLASSES)
    _touch(tmp_path, "safe/a.jpg", "nsfw/b.jpg")
    with pytest.raises(StepError, match="subfolders cannot say a multilabel head's labels"):
        samples_in(str(tmp_path), head, Columns())
