"""Finding files, reading them, and writing their paths as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsieve import ImageRejected, inputs, path_from_text, text_from_path
from clipsieve.inputs import find_images, paths_from_list, read_image


def _make(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(folder)


def _below(folder: Path, found: list[str]) -> list[str]:
    return [os.path.relpath(path, folder) for path in found]


def test_folder_is_walked_in_sorted_order_for_image_suffixes(tmp_path):
    folder = _make(tmp_path, "b.jpg", "a.PNG", "notes.txt", "jpg", "sub/c.JPeG", "sub/deep/d.avif", "z.webp")
    assert _below(tmp_path, find_images([folder])) == ["a.PNG", "b.jpg", "z.webp", "sub/c.JPeG", "sub/deep/d.avif"]


def test_named_file_is_taken_whatever_its_suffix_or_existence(tmp_path):
    folder = _make(tmp_path, "notes.txt")
    named = [f"{folder}/notes.txt", f"{folder}/missing.jpg"]
    assert find_images(named) == named


def test_order_and_repetition_of_the_arguments_are_kept(tmp_path):
    folder = _make(tmp_path, "a.jpg", "b.jpg")
    named = [f"{folder}/b.jpg", f"{folder}/a.jpg", f"{folder}/b.jpg"]
    assert find_images(named) == named


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tif", ["x.tif", "sub/y.tif"]),
        ("sub/*", ["sub/a.jpg", "sub/y.tif"]),
        ("[xy].tif", ["x.tif", "sub/y.tif"]),
        ("*.TIF", []),
    ],
)
def test_pattern_replaces_the_suffixes(tmp_path, pattern, expected):
    folder = _make(tmp_path, "a.jpg", "x.tif", "sub/a.jpg", "sub/y.tif")
    assert _below(tmp_path, find_images([folder], pattern)) == expected


def test_linked_folders_are_not_followed_but_linked_files_are_taken(tmp_path):
    folder = _make(tmp_path, "sub/a.jpg")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "sub" / "a.jpg")
    assert _below(tmp_path, find_images([folder])) == ["b.jpg", "sub/a.jpg"]


def test_folder_that_cannot_be_listed_becomes_a_path_of_its_own(tmp_path, monkeypatch):
    folder = _make(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert _below(tmp_path, find_images([folder])) == ["a.jpg", "locked"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"\xff.jpg\n", ["\udcff.jpg"]),
        (b"\n\n", []),
        (b"", []),
    ],
)
def test_list_of_paths(data, expected):
    assert paths_from_list(data) == expected


def test_reading_gives_the_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0abc")
    assert read_image(tmp_path / "a.jpg") == b"\0abc"


def test_what_cannot_be_read_is_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [
        ("missing.jpg", "No such file or directory"),
        (".", "Is a directory"),
        ("pipe.jpg", "not a regular file"),
        ("a\0b", "embedded null byte"),
    ]:
        with pytest.raises(ImageRejected) as caught:
            read_image(os.path.join(tmp_path, name))
        assert (caught.value.code, caught.value.message) == ("UNREADABLE", reason)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_rejected(tmp_path):
    (tmp_path / "a.jpg").touch(mode=0)
    with pytest.raises(ImageRejected, match="UNREADABLE: Permission denied"):
        read_image(tmp_path / "a.jpg")


def test_file_too_large_to_send_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_IMAGE_BYTES", 4)
    (tmp_path / "a.jpg").write_bytes(b"12345")
    with pytest.raises(ImageRejected, match="TOO_MANY_BYTES: 5 bytes; at most 4 are sent"):
        read_image(tmp_path / "a.jpg")


def test_refused_files_leave_no_open_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(20):
        with pytest.raises(ImageRejected):
            read_image(tmp_path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("plain/ä b.jpg", "plain/ä b.jpg"),
        ("C:\\photos\\a.jpg", "C:\\photos\\a.jpg"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("\\udcff.jpg", "\\\\udcff.jpg"),
        ("\\\udcff.jpg", "\\\\\\udcff.jpg"),
    ],
)
def test_text_of_a_path(path, text):
    assert text_from_path(path) == text
    assert path_from_text(text) == path


@given(st.text(st.sampled_from(["\\", "u", "d", "c", "8", "f", "\udc80", "\udcff", "é", "a", "\n"]), max_size=24))
def test_text_of_any_path_is_utf8_and_lossless(path):
    text = text_from_path(path)
    text.encode()
    assert path_from_text(text) == path
