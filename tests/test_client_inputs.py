"""Finding files, reading them, and writing their paths as text."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipsieve import ImageRejected, images, path_from_text, text_from_path
from clipsieve.exceptions import InputRefused
from clipsieve.images import read_image
from clipsieve.inputs import Inputs, paths_from_list


def _make(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(folder)


def find_images(paths: list[str], pattern: str | None = None, column: str | None = None) -> list[str]:
    return list(Inputs(tuple(map(str, paths)), pattern, column))


def _below(folder: Path, paths: list[str]) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


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
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"\xff.jpg\n", ["\udcff.jpg"]),
        (b"\n\n", []),
        (b"", []),
    ],
)
def test_list_of_paths(data, expected):
    assert list(paths_from_list(io.BytesIO(data))) == expected


def test_list_of_paths_is_read_as_it_comes():
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        paths = paths_from_list(file)
        os.write(writer, b"a.jpg\n")
        assert next(paths) == "a.jpg"
        os.write(writer, b"b.")
        os.write(writer, b"jpg\n")
        os.close(writer)
        assert list(paths) == ["b.jpg"]


@given(st.lists(st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name), min_size=2, max_size=100))
def test_any_names_separated_by_nul(names):
    names = [name.replace(b"\n", b"n") if index < 1 else name for index, name in enumerate(names)]
    data = b"".join(name + b"\0" for name in names)
    assert list(paths_from_list(io.BytesIO(data))) == [os.fsdecode(name) for name in names]


def test_list_that_mixes_its_separators_is_refused():
    data = b"some/name.jpg\n" * 1000 + b"other.jpg\0"
    with pytest.raises(InputRefused, match="lines and then a NUL"):
        list(paths_from_list(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("s*/*.jpg", ["sub/c.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/d.jpg"]),
        ("**", ["a.jpg", "b.jpg", "[x].jpg.txt", "sub/c.jpg", "sub/deep/d.jpg"]),
        ("sub/**/d.*", ["sub/deep/d.jpg"]),
        ("s?b", ["sub/c.jpg", "sub/deep/d.jpg"]),
        ("[[]x*", ["[x].jpg.txt"]),
        ("[x].jpg.txt", ["[x].jpg.txt"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    folder = _make(tmp_path, "b.jpg", "a.jpg", "sub/c.jpg", "sub/deep/d.jpg", "[x].jpg.txt")
    assert sorted(_below(tmp_path, find_images([f"{folder}/{pattern}"]))) == sorted(expected)


def test_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"no file matches '.*\*.jpg'"):
        find_images([f"{tmp_path}/*.jpg"])


def test_patterns_work_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(_make(tmp_path, "a.jpg", "sub/b.jpg"))
    assert find_images(["*.jpg"]) == ["a.jpg"]
    assert find_images(["**/*.jpg"]) == ["a.jpg", "sub/b.jpg"]


LISTS = {
    "a.csv": 'path,score\nx.jpg,1\n"a,b\n.jpg",2\n',
    "b.jsonl": '{"path": "x.jpg", "n": 1}\n\n{"n": 2, "path": "a,b\\n.jpg"}\n',
    "c.jsonl": '"x.jpg"\n"a,b\\n.jpg"\n',
    "d.csv": '\ufeffanything\r\nx.jpg\r\n"a,b\n.jpg"\r\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    (tmp_path / name).write_text(LISTS[name], newline="")
    assert find_images([tmp_path / name]) == ["x.jpg", "a,b\n.jpg"]


def test_parquet_list_and_its_column(tmp_path):
    table = pa.table({"n": [1, 2], "photo": ["x.jpg", "\\udcff.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert find_images([tmp_path / "a.parquet"], column="photo") == ["x.jpg", "\udcff.jpg"]
    with pytest.raises(
        InputRefused, match="none of the columns is known to hold paths; name one with --path-column: n, ph"
    ):
        find_images([tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'path\n"x', "not a readable csv table: unexpected end of data"),
        ("a.csv", "path,b\n,1", "row 2 has no path but ''"),
        ("a.csv", "", "it is empty"),
        ("a.csv", "path,b\nx,1\n\ny,z,2\n", "row 4 .line 4. does not have the header's 2 fields"),
        ("a.jsonl", '{"path": "x"}\n{', "row 2 not valid JSON: Expecting"),
        ("a.jsonl", '{"path": 3}', "row 1 has no path but 3"),
        ("a.jsonl", "[1]", "found .1. where an object"),
        ("a.parquet", "no table", "not a readable parquet table"),
        ("missing.csv", None, "No such file"),
    ],
)
def test_lists_that_are_none(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputRefused, match=message):
        find_images([tmp_path / name])


def test_folders_are_walked_lazily(tmp_path, monkeypatch):
    folder = _make(tmp_path, "a/1.jpg", "b/2.jpg")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    files = iter(Inputs((folder,)))
    assert next(files) == f"{folder}/a/1.jpg"
    assert f"{folder}/b" not in listed


def test_many_names_of_any_bytes_are_sorted(tmp_path):
    names = [f"{number}.jpg".encode() for number in range(5000)] + [b"\xff.jpg", "ä.jpg".encode()]
    for name in names:
        open(os.path.join(os.fsencode(tmp_path), name), "wb").close()
    assert [os.fsencode(os.path.basename(path)) for path in find_images([str(tmp_path)])] == sorted(names)


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
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 4)
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


# ---- nothing vanishes ----


def test_what_a_folder_holds_besides_is_counted_by_kind(tmp_path):
    folder = _make(
        tmp_path, "a.jpg", "b.HEIC", "sub/c.heic", "d.tif", "notes", "._a.jpg", ".DS_Store", "__MACOSX/a.jpg"
    )
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    inputs = Inputs((folder,))
    assert _below(tmp_path, list(inputs)) == ["a.jpg"]
    assert inputs.passed_over == {
        ".heic": 2,
        ".tif": 1,
        "file without a suffix": 1,
        "file of macOS (._*, .DS_Store, __MACOSX)": 3,
        "linked folder": 1,
    }
    assert inputs.passed_over.summary() == (
        "passed over: 3 files of macOS (._*, .DS_Store, __MACOSX), 2 .heic, 1 .tif, 1 file without a suffix, "
        "1 linked folder; --pattern takes them"
    )
    assert list(inputs)
    assert inputs.passed_over[".heic"] == 2, "counted once for each time the inputs are given"


def test_nothing_besides_has_no_summary(tmp_path):
    inputs = Inputs((_make(tmp_path, "a.jfif", "b.jpe"),))
    assert _below(tmp_path, list(inputs)) == ["a.jfif", "b.jpe"]
    assert inputs.passed_over.summary() == ""


def test_many_kinds_are_summed_up(tmp_path):
    inputs = Inputs((_make(tmp_path, "a.jpg", *(f"a.x{kind:02}" for kind in range(20))),))
    assert len(list(inputs)) == 1
    assert inputs.passed_over.summary().endswith(", 1 .x07, 12 of 12 other kinds; --pattern takes them")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "photos/a.jpg\nphotos/b.png\n"),
        ("b.csv", "0,photos/a.jpg\n1,photos/b.png\n"),
        ("c.tsv", "photos/a.jpg\t0\nphotos/b.png\t1\n"),
        ("d.txt", "photos/a.jpg\r\n\nphotos/b.png"),
        ("e.txt", "photos/a.jpg\0photos/b.png\0"),
        ("f.json", '["photos/a.jpg", "photos/b.png"]'),
        ("g.json", '[{"image_path": "photos/a.jpg", "probability": 1}, {"image_path": "photos/b.png"}]'),
    ],
)
def test_lists_without_a_header_and_texts_are_lists(tmp_path, name, text):
    (tmp_path / name).write_text(text, newline="")
    assert find_images([str(tmp_path / name)]) == ["photos/a.jpg", "photos/b.png"]


def test_captions_beside_pictures_are_no_lists(tmp_path):
    (tmp_path / "a.txt").write_text("a dog on a sofa\n")
    (tmp_path / "a.json").write_text('{"caption": "a dog"}')
    assert find_images([tmp_path / "a.txt", tmp_path / "a.json"]) == [str(tmp_path / "a.txt"), str(tmp_path / "a.json")]


def test_a_first_line_that_may_be_either_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("photos/a.xyz\nphotos/b.xyz\n")
    with pytest.raises(InputRefused, match=r"its first line is 'photos/a\.xyz': a path, or the name of the column"):
        find_images([str(tmp_path / "a.csv")])
    assert find_images([str(tmp_path / "a.csv")], column="photos/a.xyz") == ["photos/b.xyz"]


def test_a_list_of_files_that_are_there_needs_no_suffix(tmp_path):
    file = _make(tmp_path, "one", "two")
    (tmp_path / "a.csv").write_text(f"{file}/one\n{file}/two\n")
    assert find_images([str(tmp_path / "a.csv")]) == [f"{file}/one", f"{file}/two"]


def test_pictures_in_a_parquet_of_hugging_face_are_given_with_their_rows(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"first", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"third", "path": None}]
    table = str(tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0, 1, 0]}), table)
    assert list(Inputs((table,)).items()) == [
        (f"{table}#1", b"first"),
        ("b.jpg", "b.jpg"),
        (f"{table}#3", b"third"),
    ]


def test_a_cell_is_not_printed_whole(tmp_path):
    table = str(tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": [{"width": "x" * 10_000}]}), table)
    with pytest.raises(InputRefused, match="row 1 has no path but ") as refused:
        list(Inputs((table,)))
    assert len(str(refused.value)) < 300
