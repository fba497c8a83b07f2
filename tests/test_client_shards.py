"""Shards: samples by key, every kind of damage reported, nothing unpacked, little in memory."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsieve.exceptions import ClipsieveError, ShardError
from clipsieve.shards import Sample, is_shard, iter_samples, layout_of, scores_path, scores_paths

FILES = {"000.jpg": b"first", "000.json": b"{}", "001.json": b"{}", "001.PNG": b"second", "002.webp": b"third"}
SAMPLES = [("000", b"first", "jpg"), ("001", b"second", "png"), ("002", b"third", "webp")]


def _entry(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def _shard(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]], mode: str = "w", **options: object) -> Path:
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items() if isinstance(files, dict) else files:
            archive.addfile(_entry(name, len(data)), io.BytesIO(data))
    return path


def _seen(samples: list[Sample]) -> list[tuple[str, bytes, str]]:
    return [(sample.key, sample.image, sample.error.code if sample.error else sample.extension) for sample in samples]


def _read(path: Path, **options: object) -> tuple[list[tuple[str, bytes, str]], ShardError | None]:
    """The samples given before the end or the error, and the error."""
    samples: list[Sample] = []
    failure: ShardError | None = None
    try:
        samples.extend(iter_samples(path, **options))  # type: ignore[arg-type]
    except ShardError as error:
        failure = error
    assert failure is None or failure.samples == len(samples)
    return _seen(samples), failure


class Stream(io.RawIOBase):
    """A file that cannot seek and gives few bytes at a time, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = self._data.read(min(len(buffer), 700))
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_grouped_by_key_with_their_image(tmp_path: Path, form: int) -> None:
    assert _read(_shard(tmp_path / "a.tar", FILES, format=form)) == (SAMPLES, None)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "gzipped without saying so.tar"])
def test_gzipped_shards_are_the_same(tmp_path: Path, name: str) -> None:
    assert _read(_shard(tmp_path / name, FILES, "w:gz")) == (SAMPLES, None)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_stream_that_cannot_seek_is_read_too(tmp_path: Path, mode: str) -> None:
    shard = _shard(tmp_path / "a.tar", FILES, mode)
    samples = list(iter_samples("bucket/a.tar", file=Stream(shard.read_bytes())))  # type: ignore[arg-type]
    assert _seen(samples) == SAMPLES


def test_samples_know_their_place_and_can_be_taken_up_from_there(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    assert [sample.index for sample in iter_samples(shard)] == [0, 1, 2]
    for start in range(5):
        assert _read(shard, start=start) == (SAMPLES[start:], None)


def test_long_and_foreign_names(tmp_path: Path) -> None:
    names = ["d" * 200 + "/" + "n" * 240, "ключ", "a\nb", 'q"uote,', "=1+1", "bytes \udcff"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = _shard(tmp_path / "a.tar", {f"{name}.jpg": b"i" for name in names}, format=form)
        assert [key for key, _, _ in _read(shard)[0]] == names


def test_keys_are_only_names(tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("*"))
    names = ["../../up/x", "/etc/x", "v1.2/y", "./z"]
    shard = _shard(tmp_path / "a.tar", {f"{name}.jpg": b"i" for name in names})
    assert [key for key, _, _ in _read(shard)[0]] == names
    assert sorted(tmp_path.parent.rglob("*")) == sorted([*before, shard])


def test_what_belongs_to_no_sample_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(_entry("folder.d", type=tarfile.DIRTYPE))
        for name in ("README", "._000.jpg", "folder/.hidden.jpg", "__meta__", "__x__/a.jpg"):
            archive.addfile(_entry(name, 3), io.BytesIO(b"any"))
        archive.addfile(_entry("folder/000.jpg", 5), io.BytesIO(b"first"))
    assert _read(path) == ([("folder/000", b"first", "jpg")], None)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([("a.json", b"{}"), ("a.orig.jpg", b"by another key")], "DOTTED_NAME"),
        ([("a.json", b"{}"), ("a.txt", b"no image")], "NO_IMAGE"),
        ([("a.jpg", b"1"), ("a.png", b"2")], "SEVERAL_IMAGES"),
        ([("a.jpg", b"1"), ("a.jpg", b"2")], "DUPLICATE_MEMBER"),
        ([("a.json", b"1"), ("a.json", b"2"), ("a.jpg", b"3")], "DUPLICATE_MEMBER"),
        ([("a.jpg", b"12345678901")], "TOO_MANY_BYTES"),
    ],
)
def test_a_bad_sample_is_an_error_between_good_ones(tmp_path: Path, files: list, code: str) -> None:
    shard = _shard(tmp_path / "a.tar", [("0.jpg", b"before"), *files, ("z.jpg", b"after")])
    expected = [("0", b"before", "jpg"), ("a", b"", code), ("z", b"after", "jpg")]
    assert _read(shard, max_image_bytes=10) == (expected, None)


@pytest.mark.parametrize("members", [["a.tif", "a.jpg"], ["a.jpg", "a.tif"], ["a.json", "a.heic"]])
def test_heic_and_tiff_are_images_of_samples_without_another(tmp_path: Path, members: list[str]) -> None:
    shard = _shard(tmp_path / "a.tar", [(name, name.encode()) for name in members])
    image = "a.jpg" if "a.jpg" in members else "a.heic"
    assert _read(shard) == ([("a", image.encode(), image[2:])], None)


def test_every_image_behind_a_second_dot_is_named(tmp_path: Path) -> None:
    names = [f"IMG_2023.01.{day:02}.jpg" for day in range(1, 9)]
    (sample,) = iter_samples(_shard(tmp_path / "a.tar", [(name, b"1") for name in names]))
    assert sample.key == "IMG_2023"
    assert sample.error is not None
    assert sample.error.code == "DOTTED_NAME"
    assert all(name in sample.error.message for name in names)


def test_a_key_that_comes_again_has_a_row_with_an_error(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.json", b"{}"), ("c.jpg", b"3")])
    samples = list(iter_samples(shard))
    assert _seen(samples) == [("a", b"1", "jpg"), ("b", b"2", "jpg"), ("a", b"", "DUPLICATE_KEY"), ("c", b"3", "jpg")]
    assert "samples 0 and 2" in str(samples[2].error)
    assert _seen(list(iter_samples(shard, start=1)))[1] == ("a", b"", "DUPLICATE_KEY")


@pytest.mark.parametrize(
    ("kind", "words"),
    [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.FIFOTYPE, "special file")],
)
def test_links_and_special_files_are_errors_and_never_followed(tmp_path: Path, kind: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(_entry("a.jpg", type=kind, linkname="/etc/passwd"))
        archive.addfile(_entry("b.jpg", 4), io.BytesIO(b"good"))
    samples = list(iter_samples(path))
    assert _seen(samples) == [("a", b"", "NOT_A_FILE"), ("b", b"good", "jpg")]
    assert words in str(samples[0].error)


def test_sparse_members_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    map_and_data = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_entry("a.jpg", len(map_and_data), pax_headers=headers), io.BytesIO(map_and_data))
        archive.addfile(_entry("b.jpg", 4), io.BytesIO(b"good"))
    assert _read(path, max_image_bytes=1 << 50) == ([("a", b"", "NOT_A_FILE"), ("b", b"good", "jpg")], None)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    assert _read(_shard(tmp_path / "a.tar", {})) == ([], None)
    assert _read(_shard(tmp_path / "b.tar", {}, "w:gz")) == ([], None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut off|empty"),
        (b"\xff\xd8\xff\xe0" + b"a picture" * 200, "not a tar"),
        (b"PK\x03\x04" + b"a zip" * 200, "not a tar"),
        (b"short", "not a tar"),
        (b"\x1f\x8bnot gzip at all", "not a tar|damaged|cut off"),
        (gzip.compress(b"text" * 500, mtime=0), "not a tar"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ShardError, match=words) as raised:
        list(iter_samples(path))
    assert str(raised.value).startswith(str(path))


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.tar", tmp_path):
        with pytest.raises(ShardError, match=r"No such file|Is a directory"):
            list(iter_samples(path))


def _ends(shard: Path) -> list[int]:
    """The byte after each member's last block."""
    return [member.end for span in layout_of(shard).spans for member in span.members]


@pytest.mark.parametrize("kept", [*range(1, 10 * 512, 256), 10 * 512 + 1])
def test_a_shard_cut_anywhere_gives_what_is_whole_and_an_error(tmp_path: Path, kept: int) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)  # 10 blocks, then the end mark
    ends = _ends(shard)
    shard.write_bytes(shard.read_bytes()[:kept])
    samples, error = _read(shard)
    assert error is not None
    assert samples == SAMPLES[: len(samples)]
    # A sample is whole once the next one's first header is there.
    assert len(samples) == sum(kept >= ends[last] + 512 for last in (1, 3))
    assert f"after {len(samples)} whole samples" in str(error)


def test_a_cut_within_a_big_image_names_it(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": bytes(5_000_000)})
    shard.write_bytes(shard.read_bytes()[:3_000_000])
    samples, error = _read(shard)
    assert samples == [("a", b"1", "jpg")]
    assert "cut off at byte 3000000, within 'b.jpg'" in str(error)
    assert "cut off" in str(_read(shard, max_image_bytes=10)[1])


@pytest.mark.parametrize("kept", [12, 60, 100, -9, -1])
def test_a_gzipped_shard_cut_anywhere_is_an_error(tmp_path: Path, kept: int) -> None:
    shard = _shard(tmp_path / "a.tgz", FILES, "w:gz")
    shard.write_bytes(shard.read_bytes()[:kept])
    samples, error = _read(shard)
    assert error is not None
    assert samples == SAMPLES[: len(samples)]


def test_a_gzipped_shard_with_a_wrong_sum_is_an_error(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tgz", FILES, "w:gz")
    data = bytearray(shard.read_bytes())
    data[-6] ^= 1
    shard.write_bytes(data)
    assert "damaged" in str(_read(shard)[1])


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    data = bytearray(shard.read_bytes())
    data[4 * 512 + 20] ^= 0xFF
    shard.write_bytes(data)
    samples, error = _read(shard)
    assert samples == []  # 000 may go on where the damage is
    assert "damaged at byte 2048" in str(error)


def test_two_tars_joined_are_an_error_after_the_first(tmp_path: Path) -> None:
    shard = _shard(tmp_path / "a.tar", FILES)
    shard.write_bytes(shard.read_bytes() * 2)
    samples, error = _read(shard)
    assert samples == SAMPLES
    assert "more follows the end of the tar" in str(error)


def test_an_extended_header_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(_entry("x", 1 << 40, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(10_240))
    with pytest.raises(ShardError, match="a header of 1099511627776 bytes"):
        list(iter_samples(path))


def test_a_negative_size_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        for size in (-1, -512, -1024):
            block = bytearray(_entry("a.jpg", 0, type=kind).tobuf(tarfile.GNU_FORMAT))
            block[124:136] = (256**12 + size).to_bytes(13, "big")[1:]
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            path.write_bytes(bytes(block) * 3 + bytes(10_240))
            with pytest.raises(ShardError):
                list(iter_samples(path))


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        shard = _shard(tmp_path / f"{count}.tar", {f"{number:06}.jpg": bytes(20_000) for number in range(count)})
        tracemalloc.start()
        assert sum(len(sample.image) for sample in iter_samples(shard)) == count * 20_000
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(1000) < peak(100) + 400_000  # the keys of 900 samples, not their 18 MB of images


def test_a_member_over_the_limit_is_not_read_to_memory(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with shard.open("wb") as file:
        file.write(_entry("a.jpg", 300 << 20).tobuf())
        file.seek(300 << 20, io.SEEK_CUR)
        file.write(_entry("b.jpg", 3).tobuf() + b"abc".ljust(512, b"\0") + bytes(1024))
    tracemalloc.start()
    assert _read(shard) == ([("a", b"", "TOO_MANY_BYTES"), ("b", b"abc", "jpg")], None)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_where_scores_belong() -> None:
    assert scores_path(Path("data/00000.tar")) == Path("data/00000.parquet")
    assert scores_path(Path("data/v1.2.TAR.GZ"), Path("out")) == Path("out/v1.2.parquet")
    assert scores_path(Path("a.tgz")) == Path("a.parquet")
    assert [is_shard(name) for name in ("a.tar", "A.TGZ", Path("a.tar.gz"), "a.zip", "tar")] == [1, 1, 1, 0, 0]


def test_two_shards_with_one_place_for_scores_are_refused() -> None:
    shards = [Path("a/0.tar"), Path("b/0.tar")]
    assert scores_paths(shards) == [Path("a/0.parquet"), Path("b/0.parquet")]
    with pytest.raises(ClipsieveError, match=r"a/0\.tar and b/0\.tar would both be written to out/0\.parquet"):
        scores_paths(shards, Path("out"))


# No newlines: webdataset drops samples in a folder with one.
_PARTS = st.text(alphabet="ab.-_/é", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.tuples(_PARTS, st.sampled_from(["jpg", "JPEG", "png", "json", "cls", "seg.png"])), max_size=12),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_samples_are_those_webdataset_reads(tmp_path_factory: pytest.TempPathFactory, names: list, form: int) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    members = {f"{stem}.{extension}": f"{index}".encode() for index, (stem, extension) in enumerate(names)}
    shard = _shard(tmp_path_factory.mktemp("wds") / "a.tar", members, format=form)

    def visible(name: str) -> bool:  # webdataset takes the folder of a hidden file for its key
        return not name.rpartition("/")[2].startswith(".")

    with shard.open("rb") as file:
        entries = tar_file_iterator(file, select_files=visible)  # type: ignore[arg-type]  # its annotation is wrong
        theirs = [(s["__key__"], sorted(s.keys() - {"__key__", "__url__"})) for s in group_by_keys(_all(entries))]
    ours = [(span.key, sorted(member.extension for member in span.members)) for span in layout_of(shard).spans]
    assert ours == theirs


def _all(entries):
    for entry in entries:
        yield {"fname": entry["fname"], "data": entry["data"], "__url__": "a.tar"}


def test_a_shard_that_webdataset_wrote(tmp_path: Path) -> None:
    from webdataset.writer import TarWriter

    for name in ("a.tar", "a.tar.gz"):
        with TarWriter(str(tmp_path / name)) as writer:
            for number in range(3):
                writer.write(
                    {"__key__": f"folder/{number:04}", "jpg": f"image {number}".encode(), "json": {"n": number}}
                )
        expected = [(f"folder/{number:04}", f"image {number}".encode(), "jpg") for number in range(3)]
        assert _read(tmp_path / name) == (expected, None)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything_but_a_shard_error(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    folder = tmp_path_factory.mktemp("damage")
    form = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    names = {f"{'long' * 30}/é.jpg": b"1" * 600} if form != tarfile.USTAR_FORMAT else {}
    mode = data.draw(st.sampled_from(["w", "w", "w:gz"]))
    shard = _shard(folder / "a.tar", FILES | names, mode, format=form)
    content = bytearray(shard.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, min(len(content) - 1, 6000)))
        content[place] = data.draw(st.sampled_from([0, 0x20, 0x30, 0x80, 0xFF]) | st.integers(0, 255))
    shard.write_bytes(content)
    _read(shard)
