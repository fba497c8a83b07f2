"""Odd shards and lists have the same samples for training and for the client, or are refused by both."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsieve.exceptions import InputRefused, ShardError, TableError
from clipsieve.lists import paths_from_table
from clipsieve.paths import text_from_path
from clipsieve.shards import iter_samples
from clipsieve.table_batches import numbered_rows
from recipes.head_section import Head
from training.datasets import samples_in
from training.errors import StepError
from training.tables import Columns

BINARY = Head(name="nsfw", class_names=["safe", "nsfw"])

Files = Iterable[tuple[str, bytes]]
GOOD = [("000.jpg", b"first"), ("000.cls", b"1"), ("001.jpg", b"second"), ("001.cls", b"0")]
BOTH = {"000": b"first", "001": b"second"}


def tar(files: Files, form: int = tarfile.PAX_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar of these files; `kind` is that of the first."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number, (name, data) in enumerate(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.type = tarfile.REGTYPE if number else kind
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def without_end(data: bytes) -> bytes:
    return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512)


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def linked(name: str, target: str, kind: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    return without_end(file.getvalue()) + tar(GOOD)


LONG = "folder/" * 30 + "long"
SHARDS: dict[str, tuple[bytes, dict[str, bytes] | None]] = {
    "plain": (tar(GOOD), BOTH),
    "gnu": (tar(GOOD, tarfile.GNU_FORMAT), BOTH),
    "ustar": (tar(GOOD, tarfile.USTAR_FORMAT), BOTH),
    "more blocks of the end": (tar(GOOD) + bytes(64 * 512), BOTH),
    "two tars, one after the other": (tar(GOOD) + tar([("002.jpg", b"third"), ("002.cls", b"1")]), None),
    "two tars, joined": (without_end(tar(GOOD)) + tar([("002.jpg", b"third")]), BOTH | {"002": b"third"}),
    "no mark of the end": (without_end(tar(GOOD)), None),
    "cut in a header": (tar(GOOD)[:1100], None),
    "cut in a file": (tar([*GOOD, ("2.jpg", bytes(9000))])[: 9 * 512 + 3000], None),
    "a damaged header": (damaged(tar(GOOD), 4 * 512 + 20), None),
    "junk behind the end": (tar(GOOD) + b"junk", None),
    "no tar": (b"<html>not found</html>" * 100, None),
    "no byte": (b"", None),
    "hidden files": (tar([("._000.jpg", b"fork"), *GOOD, ("._001.jpg", b"fork"), ("d/.x.jpg", b"x")]), BOTH),
    "names of WebDataset itself": (tar([("__meta__/x.jpg", b"x"), *GOOD]), BOTH),
    "a name that is only a suffix": (tar([(".jpg", b"x"), *GOOD]), BOTH),
    "a name without a dot": (tar([("readme", b"x"), *GOOD]), BOTH),
    "a name without a dot within a sample": (tar([GOOD[0], ("000", b"x"), *GOOD[1:]]), BOTH),
    "directories": (tar([("d.jpg", b""), *GOOD], kind=tarfile.DIRTYPE), BOTH),
    "keys that lead out": (
        tar([("../../up/x.jpg", b"1"), ("/etc/y.jpg", b"2"), *GOOD]),
        BOTH | {"../../up/x": b"1", "/etc/y": b"2"},
    ),
    "suffixes in capitals": (tar([("a.JPG", b"1"), ("a.CLS", b"1"), ("b.JpEg", b"2")]), {"a": b"1", "b": b"2"}),
    "two spellings of a suffix": (tar([*GOOD, ("2.jpg", b"1"), ("2.JPG", b"2")]), None),
    "several extensions": (
        tar([("v1.2/y.seg.png", b"mask"), ("v1.2/y.jpg", b"3"), ("v1.2/y.cls", b"0")]),
        {"v1.2/y": b"3"},
    ),
    "several images of a key": (tar([*GOOD, ("2.jpg", b"1"), ("2.png", b"2")]), None),
    "a member twice": (tar([*GOOD, ("2.jpg", b"1"), ("2.jpg", b"2")]), None),
    "a key that comes again": (tar([*GOOD, ("000.png", b"again")]), None),
    "a sample without an image": (tar([("2.json", b"{}"), *GOOD]), BOTH),
    "long and foreign names": (
        tar([(f"{LONG}.jpg", b"1"), ("grün.jpg", b"2"), *GOOD]),
        BOTH | {LONG: b"1", "grün": b"2"},
    ),
    "names that are not UTF-8": (tar([("\udcff.jpg", b"1"), *GOOD], tarfile.GNU_FORMAT), BOTH | {"\\udcff": b"1"}),
    "an image that is a link": (linked("x.jpg", "000.jpg", tarfile.SYMTYPE), None),
    "an image that is a hard link": (linked("x.jpg", "000.jpg", tarfile.LNKTYPE), None),
    "another file that is a link": (linked("x.depth", "000.jpg", tarfile.SYMTYPE), BOTH),
    "an image that is a pipe": (linked("x.jpg", "", tarfile.FIFOTYPE), None),
}
"""Tars, and the images by key; None where the shard is refused."""


def _trained(shard: Path) -> dict[str, bytes] | None:
    try:
        return {sample.key: sample.read() for sample in samples_in(str(shard), BINARY, Columns()).samples}
    except StepError:
        return None


def _scored(shard: Path) -> dict[str, bytes] | None:
    """The samples by their keys as the client writes them; None if one is an error, which training does not allow."""
    samples: dict[str, bytes] = {}
    try:
        for sample in iter_samples(shard):
            if sample.error is None:
                samples[text_from_path(sample.key)] = sample.image
            elif sample.error.code not in ("NO_IMAGE", "DOTTED_NAME"):
                return None
    except ShardError:
        return None
    return samples


@pytest.mark.parametrize("read", [_trained, _scored])
@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_has_the_same_samples_for_training_and_scoring(tmp_path: Path, name: str, read: Callable) -> None:
    data, expected = SHARDS[name]
    (tmp_path / "a.tar").write_bytes(data)
    assert read(tmp_path / "a.tar") == expected


def test_a_label_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(without_end(tar([("x.jpg", b"x")])) + linked("x.cls", "000.cls", tarfile.SYMTYPE))
    with pytest.raises(StepError, match=r"key 'x': x\.cls: is a symbolic link"):
        samples_in(str(tmp_path / "a.tar"), BINARY, Columns())


TABLES: dict[str, tuple[str, bytes | list[dict], list[str] | None]] = {
    "plain": (".csv", b"path,label\na.jpg,1\nb.jpg,0\n", ["a.jpg", "b.jpg"]),
    "CRLF": (".csv", b"path,label\r\na.jpg,1\r\nb.jpg,0\r\n", ["a.jpg", "b.jpg"]),
    "a byte order mark": (".csv", b"\xef\xbb\xbfpath,label\na.jpg,1\n", ["a.jpg"]),
    "a byte order mark of JSON lines": (".jsonl", b'\xef\xbb\xbf{"path": "a.jpg", "label": 1}\n', ["a.jpg"]),
    "semicolons, as Excel writes them": (".csv", b"path;label;note\r\na.jpg;1;x, y\r\n", ["a.jpg"]),
    "semicolons and quoted names": (".csv", b'"path";"label"\n"a;b.jpg";1\n', ["a;b.jpg"]),
    "tabs": (".csv", b"path\tlabel\na, b.jpg\t1\n", ["a, b.jpg"]),
    "a .tsv": (".tsv", b"path\tlabel\na.jpg\t1\n", ["a.jpg"]),
    "semicolons in a name between commas": (".csv", b"path,label\na;b;c.jpg,1\n", ["a;b;c.jpg"]),
    "one column": (".csv", b"path\na;b,jpg\n", None),
    "UTF-16, little end first": (".csv", "path\tlabel\r\n\u00fc.jpg\t1\r\n".encode("utf-16"), ["\u00fc.jpg"]),
    "UTF-16, big end first": (
        ".csv",
        b"\xfe\xff" + "path,label\n\u00fc.jpg,1\n".encode("utf-16-be"),
        ["\u00fc.jpg"],
    ),
    "UTF-16 of JSON lines": (".jsonl", '{"path": "\u00fc.jpg", "label": 1}\n'.encode("utf-16"), ["\u00fc.jpg"]),
    "UTF-16 that is cut off": (".csv", "path,label\na.jpg,1\n".encode("utf-16")[:-1], None),
    "a byte order mark and lines of an old Mac": (".csv", b"\xef\xbb\xbfpath,label\ra.jpg,1\r", ["a.jpg"]),
    "names in capitals and with spaces": (".csv", b"Label, Path \n1,a.jpg\n", ["a.jpg"]),
    "no end of the last line": (".csv", b"path,label\na.jpg,1", ["a.jpg"]),
    "empty lines": (".csv", b"path,label\n\na.jpg,1\n\n\nb.jpg,0\n", ["a.jpg", "b.jpg"]),
    "quoted newlines and commas": (".csv", b'path,label\n"a,\nb.jpg",1\n"c""d.jpg",0\n', ["a,\nb.jpg", 'c"d.jpg']),
    "a quote that does not end": (".csv", b'path,label\n"a.jpg,1\n', None),
    "too few fields": (".csv", b"label,path\n1,a.jpg\n0\n", None),
    "too few fields behind the path": (".csv", b"path,label\na.jpg,1\nb.jpg\n", None),
    "too many fields": (".csv", b"path,label\na.jpg,1\nb,c.jpg,0\n", None),
    "no rows and no header": (".csv", b"", None),
    "Latin-1": (".csv", b"path,label\n\xfc.jpg,1\n", None),
    "an empty path": (".csv", b"path,label\n,1\n", None),
    "a path with a NUL": (".jsonl", b'{"path": "a\\u0000.jpg", "label": 1}\n', None),
    "a path that is a number": (".jsonl", b'{"path": 3, "label": 1}\n', None),
    "no path in one row": (".jsonl", b'{"path": "a.jpg", "label": 1}\n{"label": 1}\n', None),
    "no column of paths": (".csv", b"photo,label\na.jpg,1\n", None),
    "another usual column": (".csv", b"label,filename\n1,a.jpg\n", ["a.jpg"]),
    "two usual columns": (".csv", b"path,image_path,label\nx,a.jpg,1\n", ["a.jpg"]),
    "U+2028 and others in JSON lines": (
        ".jsonl",
        '{"path": "a\u2028b.jpg", "label": 1}\n{"path": "c\x85d.jpg", "label": 0}\n'.encode(),
        ["a\u2028b.jpg", "c\x85d.jpg"],
    ),
    "CRLF in JSON lines": (".jsonl", b'{"path": "a.jpg", "label": 1}\r\n\r\n{"path": "b.jpg"}\r\n', ["a.jpg", "b.jpg"]),
    "columns in any order": (
        ".jsonl",
        b'{"path": "a.jpg", "label": 1}\n{"n": 2, "path": "b.jpg"}\n',
        ["a.jpg", "b.jpg"],
    ),
    "a line that is cut off": (".jsonl", b'{"path": "a.jpg", "label": 1}\n{"path"', None),
    "a line that is no object": (".jsonl", b"[1]\n", None),
    "brackets without end": (".jsonl", b"[" * 100_000, None),
    "Parquet": (".parquet", [{"path": "a.jpg", "label": 1}, {"path": "b.jpg", "label": 0}], ["a.jpg", "b.jpg"]),
    "a null": (".parquet", [{"path": "a.jpg", "label": 1}, {"path": None, "label": 0}], None),
    "no Parquet": (".parquet", b"PAR1 and no more", None),
    "a name as tables of scores have it": (".csv", b"image_path,label\n\\udcff.jpg,1\n", ["\udcff.jpg"]),
}
"""Tables, and the paths in them; None where the table is refused."""


def _trained_paths(table: Path) -> list[str] | None:
    try:
        return [
            os.path.relpath(sample.path, table.parent) for sample in samples_in(str(table), BINARY, Columns()).samples
        ]
    except StepError:
        return None


def _scored_paths(table: Path) -> list[str] | None:
    try:
        return list(paths_from_table(str(table)))
    except InputRefused:
        return None


@pytest.mark.parametrize("read", [_trained_paths, _scored_paths])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_same_paths_for_training_and_scoring(tmp_path: Path, name: str, read: Callable) -> None:
    suffix, content, expected = TABLES[name]
    table = tmp_path / f"table{suffix}"
    if isinstance(content, bytes):
        table.write_bytes(content)
    else:
        pq.write_table(pa.Table.from_pylist(content), table)
    assert read(table) == expected


def test_rows_have_the_number_by_which_a_person_finds_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\n\na,1\n")
    (tmp_path / "t.jsonl").write_text('\n\n{"path": "a"}\n')
    (tmp_path / "t.json").write_text('[{"path": "a"}]')
    assert [number for name in ("csv", "jsonl", "json") for number, _ in numbered_rows(tmp_path / f"t.{name}")] == [
        3,
        3,
        1,
    ]


def test_an_object_of_paths_is_a_table_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"a.jpg": 1}')
    assert list(numbered_rows(tmp_path / "t.json", ("path", "label"))) == [(1, {"path": "a.jpg", "label": 1})]
    with pytest.raises(TableError, match="expected an array of objects"):
        list(numbered_rows(tmp_path / "t.json"))


NESTED = {
    "records by path": '{"a.jpg": {"score": 6.5, "comparisons": 3}}',
    "records within records": (
        '{"ImageRecords": {"a.jpg": {"relative_filepath": "a.jpg", "score": 6.5, "comparisons": 3}}, "Metadata": {}}'
    ),
    "an array within": '{"version": 1, "images": [{"path": "a.jpg", "score": 6.5, "comparisons": 3}]}',
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_scores_are_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.json").write_text(NESTED[name])
    [(number, row)] = numbered_rows(tmp_path / "t.json", ("path", "label"))
    assert (number, row["path"], row["score"], row["comparisons"]) == (1, "a.jpg", 6.5, 3)


def test_a_score_with_its_count_of_comparisons_is_a_row_and_facts_about_the_file_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(
        '{"a.jpg": [6.5, 3], "b.jpg": 2, "c.jpg": ["x", "y"], "#meta#": {"evaluations": 9}}'
    )
    assert [row for _, row in numbered_rows(tmp_path / "t.json", ("path", "label"))] == [
        {"path": "a.jpg", "label": 6.5, "comparisons": 3},
        {"path": "b.jpg", "label": 2},
        {"path": "c.jpg", "label": ["x", "y"]},
    ]
