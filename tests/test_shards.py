from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from recipes.head_section import Head
from training.datasets import samples_in
from training.errors import StepError
from training.sample import Sample
from training.tables import Columns

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])
TAGS = Head(name="tags", task="multilabel", class_names=["gore", "nude"])
FILES = {"000.jpg": b"first", "000.cls": b"1", "001.cls": b"0", "001.jpg": b"second"}


def _shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def _read(data: Path | str, head: Head = BINARY, label: str = "label") -> list[Sample]:
    return samples_in(str(data), head, Columns(label=label)).samples


def test_samples_have_their_images_bytes_and_labels(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    samples = _read(shard)
    assert [(s.key, s.label, s.read()) for s in samples] == [("000", "nsfw", b"first"), ("001", "safe", b"second")]
    assert samples[0].stored_path == f"{shard.resolve()}#000.jpg"


def test_a_folder_a_pattern_and_a_file_are_the_same_shards(tmp_path: Path) -> None:
    shards = tmp_path / "with [brackets]"
    shards.mkdir()
    _shard(shards / "0.tar", {"a.jpg": b"1", "a.cls": b"1"})
    _shard(shards / "1.tar", {"b.jpg": b"2", "b.cls": b"0"})
    assert [sample.key for sample in _read(shards)] == ["a", "b"]
    assert [sample.key for sample in _read(shards / "1.tar")] == ["b"]
    assert [sample.key for sample in _read(f"{tmp_path}/*/?.tar")] == ["a", "b"]


def test_labels_come_from_cls_then_json_then_txt(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"",
        "a.txt": b"a caption",
        "a.json": b'{"label": "safe"}',
        "a.cls": b"nsfw\n",
        "b.png": b"",
        "b.json": json.dumps({"label": 1, "width": 3}).encode(),
        "b.txt": b"another caption",
        "c.webp": b"",
        "c.json": b'{"width": 3}',
        "c.txt": b"safe",
        "d.jpg": b"",
    }
    assert [sample.label for sample in _read(_shard(tmp_path / "a.tar", files))] == ["nsfw", "nsfw", "safe", None]


def test_the_jsons_label_may_have_another_name_and_be_a_list(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", {"a.jpg": b"", "a.json": b'{"tags": ["nude"]}'})
    assert [sample.label for sample in _read(shard, TAGS, "tags")] == ['["nude"]']


def test_keys_end_at_the_first_dot_of_the_file_name_and_are_only_names(tmp_path: Path) -> None:
    files = {
        "../../up/x.jpg": b"1",
        "../../up/x.cls": b"1",
        "v1.2/y.orig.jpg": b"2",
        "v1.2/y.jpg": b"3",
        "v1.2/y.cls": b"0",
    }
    before = sorted(tmp_path.parent.rglob("*"))
    shard = _shard(tmp_path / "a.tar", files)
    assert [(s.key, s.read()) for s in _read(shard)] == [("../../up/x", b"1"), ("v1.2/y", b"3")]
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, shard])


def test_an_image_whose_name_has_another_dot_is_named_or_counted(tmp_path: Path) -> None:
    files = {"22.05 a.jpg": b"1", "22.05 a.cls": b"1", "22.05 b.png": b"2", "y.jpg": b"3", "y.seg.png": b"4", **FILES}
    data = samples_in(str(_shard(tmp_path / "a.tar", files)), BINARY, Columns())
    assert [sample.key for sample in data.samples] == ["y", "000", "001"]
    assert [(failure.path, failure.code) for failure in data.failures] == [
        (f"{tmp_path}/a.tar#22.05 a.jpg", "DOTTED_NAME"),
        (f"{tmp_path}/a.tar#22.05 b.png", "DOTTED_NAME"),
    ]
    assert "the file '05 a.jpg' of the sample '22'" in data.failures[0].message
    assert data.passed_over == {"images beside a sample's own, such as .seg.png": 1}


def test_a_shard_of_nothing_but_dotted_names_is_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no image can be used; .*a key ends at the first dot of a name"):
        _read(_shard(tmp_path / "a.tar", {"22.05 a.jpg": b"1", "22.05 a.cls": b"1"}))


def test_captions_are_no_labels(tmp_path: Path) -> None:
    words = {"a": "nsfw", "b": "a dog", "c": "a cat", "d": "safe"}
    files = {f"{key}{suffix}": text.encode() for key, text in words.items() for suffix in (".jpg", ".txt")}
    data = samples_in(str(_shard(tmp_path / "half.tar", files)), BINARY, Columns())
    assert [sample.label for sample in data.samples] == ["nsfw", None, None, "safe"]
    assert data.passed_over == {"captions (.txt that is no label)": 2}
    del files["d.jpg"], files["d.txt"]
    data = samples_in(str(_shard(tmp_path / "most.tar", {"e.jpg": b"", "e.cls": b"safe", **files})), BINARY, Columns())
    assert [sample.label for sample in data.samples] == ["safe", None, None, None]
    assert data.passed_over == {"captions (.txt that is no label)": 3}


def test_members_without_an_image_are_passed_over(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", {"readme.txt": b"hello", **FILES})
    assert [sample.key for sample in _read(shard)] == ["000", "001"]


@pytest.mark.parametrize("kept", range(100, 7 * 512, 300))
def test_a_shard_cut_anywhere_is_refused_with_its_byte(tmp_path: Path, kept: int) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)  # 8 blocks, then the end mark
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(StepError, match=rf"a\.tar: (cut off at byte {kept}|not a tar)"):
        _read(shard)


def test_a_shard_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    shard.write_bytes(shard.read_bytes()[: 4 * 512])
    with pytest.raises(StepError, match="cut off at byte 2048, after 0 whole samples"):
        _read(shard)


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    data = bytearray(shard.read_bytes())
    data[4 * 512 + 20] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(StepError, match="damaged at byte 2048"):
        _read(shard)


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(StepError, match=r"a\.tar: is compressed, .*gunzip"):
        _read(tmp_path / "a.tar")


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(StepError, match=r"key 'a': NOT_A_FILE: 'a\.jpg' is a symbolic link"):
        _read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jpg": b"", "a.cls": b"7"}, r"key 'a': a\.cls: label '7' is neither 0 or 1"),
        (
            {"a.jpg": b"", "a.txt": b"a dog on a lawn"},
            r"no sample has a label; .*a\.txt holds none: .*'a dog on",
        ),
        ({"a.jpg": b"", "a.json": b"{"}, r"key 'a': a\.json: Expecting"),
        ({"a.jpg": b"", "a.json": b"[1]"}, r"key 'a': a\.json: "),
        ({"a.jpg": b"", "a.cls": b"\xff"}, r"key 'a': a\.cls: 'utf-8'"),
        ({"a.jpg": b"", "a.cls": b"1" * 2_000_000}, "2000000 bytes are too many for a label"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"1"}, "key 'a': SEVERAL_IMAGES: a.jpg, a.png"),
        ({"a.jpg": b"", "a.cls": b"1", "b.jpg": b"", "a.png": b""}, "key 'a' comes a second time"),
        ({"a.jpg": b""}, r"no sample has a label; expected <key>\.cls"),
        ({"a.cls": b"1"}, "no images"),
    ],
)
def test_bad_shards_are_refused_with_the_key(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(StepError, match=words):
        _read(_shard(tmp_path / "a.tar", files))


@pytest.mark.parametrize("data", ["pipe:cat a.tar", "https://example.com/a.tar", "s3://bucket/a.tar"])
def test_nothing_but_local_files_is_read(data: str) -> None:
    with pytest.raises(StepError, match="only local files are read"):
        _read(data)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no such shards"):
        _read(tmp_path / "*.tar")
    with pytest.raises(StepError, match=r"gone\.tar: no such"):
        _read(tmp_path / "gone.tar")
