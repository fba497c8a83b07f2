from __future__ import annotations

from pathlib import Path

import pytest

from recipes.head_section import Head
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


def test_what_systems_leave_behind_is_passed_over_and_counted(tmp_path: Path) -> None:
    left = ("safe/.DS_Store", "safe/._a.jpg", "safe/@eaDir/a.jpg", "__MACOSX/b.jpg", "nsfw/Thumbs.db", "nsfw/c.txt")
    _touch(tmp_path, "safe/a.jpg", "nsfw/c.jpg", "notes.md", "index.pdf", *left)
    data = samples_in_class_folders(tmp_path, CLASSES)
    assert [sample.key for sample in data.samples] == ["nsfw/c.jpg", "safe/a.jpg"]
    assert data.passed_over == {
        "__MACOSX folders of macOS": 1,
        "files beside the folders of the classes": 1,
        ".md files": 1,
        ".DS_Store files of macOS": 1,
        "._ files of macOS": 1,
        "@eaDir folders of a network disk": 1,
        "Thumbs.db files of Windows": 1,
        ".txt files": 1,
    }


def test_links_to_folders_are_followed_once_and_dangling_links_are_failures(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    _touch(data, "safe/a.jpg", "nsfw/c.jpg")
    _touch(other, "deep/b.jpg")
    (data / "safe" / "disk").symlink_to(other)
    (data / "safe" / "again").symlink_to(other)
    (other / "loop").symlink_to(data / "safe")
    (data / "safe" / "gone.jpg").symlink_to("/not-mounted/gone.jpg")
    (data / "safe" / "linked.jpg").symlink_to(data / "nsfw" / "c.jpg")
    read = samples_in_class_folders(data, CLASSES)
    assert [sample.key for sample in read.samples] == [
        "nsfw/c.jpg",
        "safe/a.jpg",
        "safe/again/deep/b.jpg",
        "safe/linked.jpg",
    ]
    assert read.passed_over == {"links to folders that were read before": 2}
    [failure] = read.failures
    assert (failure.path, failure.code) == (str(data.resolve() / "safe" / "gone.jpg"), "DANGLING_LINK")
    assert "links to /not-mounted/gone.jpg, which is not there" in failure.message


def test_folders_of_splits_give_the_split(tmp_path: Path) -> None:
    _touch(tmp_path, "train/safe/a.jpg", "train/nsfw/b.jpg", "val/safe/c.jpg", "test/nsfw/d.jpg")
    data = samples_in(str(tmp_path), Head(name="nsfw", class_names=CLASSES), Columns())
    assert [(sample.key, sample.label, sample.split) for sample in data.samples] == [
        ("test/nsfw/d.jpg", "nsfw", "test"),
        ("train/nsfw/b.jpg", "nsfw", "train"),
        ("train/safe/a.jpg", "safe", "train"),
        ("val/safe/c.jpg", "safe", "validation"),
    ]
    assert data.notes == ["split: from the folders test, train, val"]
    _touch(tmp_path, "val/other/e.jpg")
    with pytest.raises(StepError, match=r"val: its subfolders must be the head's class_names.\n +found: +other, safe"):
        samples_in_class_folders(tmp_path, CLASSES)


def test_classes_that_are_called_as_splits_are_classes(tmp_path: Path) -> None:
    _touch(tmp_path, "train/a.jpg", "test/b.jpg")
    data = samples_in_class_folders(tmp_path, ["train", "test"])
    assert [(sample.label, sample.split) for sample in data.samples] == [("test", None), ("train", None)]


def test_names_match_however_the_file_system_composes_them_and_case_is_a_hint(tmp_path: Path) -> None:
    _touch(tmp_path, "cafe\u0301/a.jpg", "street/b.jpg")
    assert {sample.label for sample in samples_in_class_folders(tmp_path, ["caf\u00e9", "street"]).samples} == {
        "caf\u00e9",
        "street",
    }
    with pytest.raises(StepError, match="Upper and lower case differ: street is not Street"):
        samples_in_class_folders(tmp_path, ["caf\u00e9", "Street"])


def test_a_name_that_is_not_utf8_is_written_as_text(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "nsfw/b.jpg")
    (tmp_path / "safe" / "caf\udce9.jpg").touch()
    samples = samples_in_class_folders(tmp_path, CLASSES).samples
    assert [sample.key for sample in samples] == ["nsfw/b.jpg", "safe/a.jpg", "safe/caf\\udce9.jpg"]
    assert samples[2].read() == b""
    samples[2].stored_path.encode()


def test_a_shard_beside_the_folders_of_the_classes_does_not_hide_them(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "nsfw/b.jpg", "backup.tar")
    data = samples_in(str(tmp_path), Head(name="nsfw", class_names=CLASSES), Columns())
    assert len(data.samples) == 2
    assert data.passed_over == {"files beside the folders of the classes": 1}


def test_a_hubs_captions_leave_the_labels_to_the_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "safe/a.jpg", "nsfw/b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\nsafe/a.jpg,a dog\n")
    data = samples_in(str(tmp_path), Head(name="nsfw", class_names=CLASSES), Columns())
    assert [sample.label for sample in data.samples] == ["nsfw", "safe"]
    assert data.notes == ["labels: from the folders; metadata.csv has no column 'label'"]


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
