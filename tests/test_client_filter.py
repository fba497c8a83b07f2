"""`clipsieve filter`: exactly the wanted samples, every byte of them, and the old shards untouched."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from clipsieve.cli.filter import filter_command
from clipsieve.exceptions import FilterError, ShardError
from clipsieve.filter import Columns, Tally, Wanted, columns_of, read_rows
from clipsieve.filter_shards import filter_shards, whole_file
from clipsieve.paths import text_from_path
from clipsieve.shards import iter_samples, layout_of

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
app.command("filter")(filter_command)

LOW = Wanted(below=0.5)


def _run(*arguments: object, env: dict[str, str] | None = None):
    return CliRunner(env={"COLUMNS": "200", **(env or {})}).invoke(app, [str(each) for each in arguments])


def _shard(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w", format=form) as archive:
        for number, (name, data) in enumerate(members):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode, entry.uid = len(data), 1_600_000_000 + number, 0o640, 1000 + number
            entry.uname = "somebody"
            archive.addfile(entry, io.BytesIO(data))
    return path


def _members(*keys: str) -> list[tuple[str, bytes]]:
    return [(f"{key}{end}", os.fsencode(f"{key} {end}")) for key in keys for end in (".jpg", ".json", ".txt")]


def _scores(path: Path, rows: Sequence[tuple[str, float | None, int | None, str | None]], **more: list) -> Path:
    names, scores, decisions, errors = (list(values) for values in zip(*rows, strict=True)) if rows else ([],) * 4
    columns: dict[str, Any] = {
        "key": pa.array(names, pa.string()),
        "nsfw_score": pa.array(scores, pa.float32()),
        "nsfw_decision": pa.array(decisions, pa.int32()),
        "error": pa.array(errors, pa.string()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | more), path)
    return path


ROWS: list[tuple[str, float | None, int | None, str | None]] = [
    ("a", 0.1, 0, None),
    ("b", 0.9, 2, None),
    ("c", None, None, "NOT_AN_IMAGE: no"),
    ("d", 0.3, 1, None),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the shard 0.tar of samples a to d and its table."""
    _shard(tmp_path / "data" / "0.tar", _members("a", "b", "c", "d"))
    _scores(tmp_path / "data" / "0.parquet", ROWS)
    return tmp_path / "data"


def _contents(shard: Path) -> list[tuple]:
    with tarfile.open(shard) as archive:
        return [(e.name, archive.extractfile(e).read(), e.mtime, e.mode, e.uid, e.uname) for e in archive]  # type: ignore[union-attr]


def _keys(shard: Path) -> list[str]:
    return [span.key for span in layout_of(shard).spans]


# Which rows stay


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--below", 0.3], "a"),
        (["--at-least", 0.3], "bd"),
        (["--at-least", 0.3, "--below", 0.9], "d"),
        (["--band", "allow"], "a"),
        (["--band", "0", "--band", 2], "ab"),
        (["--band", "1", "--at-least", 0.5], ""),
        (["--below", 0.3, "--keep-errors"], "ac"),
        (["--below", 0.3, "--head", "nsfw"], "a"),
        (["--below", 0.3, "--head", "nsfw_score"], "a"),
        (["--head", "nsfw_decision", "--at-least", 1], "bd"),
    ],
)
def test_rows_that_meet_every_condition_stay(data: Path, flags: list, kept: str) -> None:
    result = _run(data / "0.parquet", *flags)
    assert (result.exit_code, result.stdout) == (0, "".join(f"{key}\n" for key in kept))


def test_a_summary_goes_to_stderr_unless_quiet(data: Path) -> None:
    assert _run(data / "0.parquet", "--below", 0.5).stderr == "2 kept, 2 dropped; 1 of them without a score\n"
    assert _run(data / "0.parquet", "--below", 0.5, "-q").stderr == ""


def test_scores_are_compared_in_float32(tmp_path: Path) -> None:
    for threshold in (0.1, 0.3, 0.7, 0.9):
        table = _scores(tmp_path / "t.parquet", [("a", threshold, 0, None)])
        text = tmp_path / "t.csv"
        text.write_text(f"key,nsfw_score\na,{threshold}\n")
        for file in (table, text):
            columns = columns_of(file, LOW)
            (row,) = read_rows(file, columns, LOW)
            assert Wanted(at_least=threshold).keeps(row)
            assert not Wanted(below=threshold).keeps(row)


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf", "1e400"])
def test_a_score_that_is_none_is_an_error(tmp_path: Path, value: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"key,nsfw_score\na,{value}\n")
    assert _run(table, "--at-least", -1e9).stdout == ""
    result = _run(table, "--at-least", -1e9, "--keep-errors")
    assert (result.stdout, result.stderr) == ("a\n", "1 kept, 0 dropped; 1 of them without a score\n")


_PLAIN = [
    {"image_path": "a.jpg", "probability": 0.2, "prediction": 0, "class_name": "safe", "error": None},
    {"image_path": "b.jpg", "probability": 0.8, "prediction": 1, "class_name": "nsfw", "error": None},
    {"image_path": "c.jpg", "probability": None, "prediction": None, "class_name": None, "error": "UNREADABLE: gone"},
]


def _plain(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(_PLAIN), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(_PLAIN[0]))
            writer.writeheader()
            writer.writerows(_PLAIN)
    else:
        lines = path.suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, _PLAIN)) + "\n" if lines else json.dumps(_PLAIN))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_tables_of_single_files(tmp_path: Path, suffix: str) -> None:
    table = _plain(tmp_path / f"t{suffix}")
    assert _run(table, "--at-least", 0.5).stdout == "b.jpg\n"
    assert _run(table, "--band", "safe").stdout == "a.jpg\n"
    assert _run(table, "--band", "nsfw", "--keep-errors").stdout == "b.jpg\nc.jpg\n"


def test_decisions_may_be_written_as_bands(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("key,nsfw_score,nsfw_decision,error\na,0.9,block,\nb,0.1,allow,\nc,0.5,review,\nd,,,ERROR: no\n")
    assert _run(table, "--band", "block", "--band", "review").stdout == "a\nc\n"
    assert _run(table, "--band", "allow", "--keep-errors").stdout == "b\nd\n"
    assert _run(table, "--band", "alow").exit_code == 2


def test_the_class_of_a_head_with_several(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("key,pet_cat_score,pet_dog_score,pet_class_name\na,0.9,0.1,cat\nb,0.2,0.8,dog\n")
    assert _run(table, "--head", "pet", "--band", "dog").stdout == "b\n"
    assert _run(table, "--head", "pet_cat", "--at-least", 0.5).stdout == "a\n"


def test_a_head_of_several(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image_path,nsfw_score,nsfw_class_name,taste_score,error\na,0.9,nsfw,2,\nb,0.1,safe,9,\n")
    assert _run(table, "--head", "taste", "--at-least", 5).stdout == "b\n"
    assert _run(table, "--head", "nsfw", "--band", "nsfw").stdout == "a\n"
    result = _run(table, "--below", 0.5)
    assert result.exit_code == 2
    assert "several columns of scores, nsfw_score, taste_score; choose with --head" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--head", "gore", "--below", 1], "no column gore_score; there are: key, nsfw_score"),
        (["--head", "x", "--below", 1], "no column x_score;"),
        (["--band", "review"], "give --band 1 or --band 2 instead of --band review"),
        (["--band", "alow"], "unknown band 'alow'"),
        (["--head", "error", "--below", 1], "row 3: error is 'NOT_AN_IMAGE: no', expected a number"),
    ],
)
def test_what_the_table_does_not_have_is_told(data: Path, flags: list, words: str) -> None:
    result = _run(data / "0.parquet", *flags)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,nsfw_score\na,1\n", "no column key or image_path"),
        ("key,other\na,1\n", "no column of scores"),
        ("key,nsfw_score\na,__import__('os')\n", "row 1: nsfw_score is \"__import__('os')\", expected a number"),
        ("key,nsfw_score\na\n", "row 2 (line 2) does not have"),
        ("key,nsfw_score\n,1\n", "row 1: key is None"),
    ],
)
def test_bad_tables_are_told(tmp_path: Path, content: str, words: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(content)
    result = _run(table, "--below", 2)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    result = _run(tmp_path / "gone.parquet", "--below", 2)
    assert (result.exit_code, "gone.parquet" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["t.csv"],
        ["t.csv", "--below", "nan"],
        ["t.csv", "--below", "0.3); import os"],
        ["t.csv", "--below", "0.3", "--shards", "x"],
        ["t.csv", "--below", "0.3", "--out", "kept.csv", "--null"],
        ["t.csv", "--below", "0.3", "--out", "no/such/folder.csv"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_every_flag_has_a_variable(data: Path) -> None:
    env = {"CLIPSIEVE_AT_LEAST": "0.2", "CLIPSIEVE_BELOW": "0.5", "CLIPSIEVE_QUIET": "1", "CLIPSIEVE_BAND": "1"}
    result = _run(data / "0.parquet", env=env)
    assert (result.stdout, result.stderr) == ("d\n", "")
    command = typer.main.get_command(app)
    assert {option.name for option in command.params if not getattr(option, "envvar", None)} <= {"scores", "help"}  # type: ignore[attr-defined]


# Lists of names

NASTY = ["a\nb.jpg", "=1+1.jpg", 'quo"te,.jpg', "cr\r.jpg", "byte\udcff.jpg", " space", "é\u2028"]


def test_lists_keep_every_name(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    names = pa.array([text_from_path(name) for name in NASTY])
    pq.write_table(pa.table({"image_path": names, "nsfw_score": pa.array([0.5] * len(NASTY), pa.float32())}), table)
    assert _run(table, "--below", 1, "-0", "--out", tmp_path / "t.txt").exit_code == 0
    assert (tmp_path / "t.txt").read_bytes().split(b"\0")[:-1] == [os.fsencode(name) for name in NASTY]
    for suffix in (".csv", ".parquet"):
        assert _run(table, "--below", 1, "--out", tmp_path / f"out{suffix}").exit_code == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image_path"] for row in csv.DictReader(file)] == names.to_pylist()
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept.column_names == ["image_path", "nsfw_score", "error"]
    assert kept["image_path"].to_pylist() == names.to_pylist()


@pytest.mark.parametrize("name", ["a\nb", "a\r"])
def test_a_name_that_a_list_of_lines_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    table = _scores(tmp_path / "t.parquet", [(name, 0.1, 0, None)])
    result = _run(table, "--below", 1, "--out", tmp_path / "t.txt")
    assert (result.exit_code, "--null" in result.stderr) == (2, True)
    assert os.listdir(tmp_path) == ["t.parquet"]
    assert _run(table, "--below", 1, "-0").stdout_bytes == name.encode() + b"\0"


def test_keys_are_listed_with_their_shard(tmp_path: Path) -> None:
    tables = [_scores(tmp_path / f"{number}.parquet", [("a", 0.25, 0, None)]) for number in (0, 1)]
    assert _run(*tables, "--below", 1, "--out", tmp_path / "t.csv").exit_code == 0
    assert (tmp_path / "t.csv").read_text() == 'key,shard,nsfw_score,error\n"a","0",0.25,""\n"a","1",0.25,""\n'


def test_an_empty_list_is_a_table_still(data: Path) -> None:
    for suffix in (".txt", ".csv", ".parquet"):
        assert _run(data / "0.parquet", "--below", 0, "--out", data / f"none{suffix}").exit_code == 0
    assert pq.read_table(data / "none.parquet").num_rows == 0


def test_tables_of_different_kinds_do_not_go_to_one_list(data: Path, tmp_path: Path) -> None:
    result = _run(data / "0.parquet", _plain(tmp_path / "t.csv"), "--below", 1)
    assert (result.exit_code, "filter them one by one" in result.stderr) == (2, True)


def test_an_output_that_exists_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.txt"
    out.write_text("before")
    assert _run(data / "0.parquet", "--below", 0.2, "--out", out).exit_code == 2
    assert out.read_text() == "before"
    assert _run(data / "0.parquet", "--below", 0.2, "--out", out, "--overwrite").exit_code == 0
    assert out.read_text() == "a\n"


# New shards


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz"])
def test_new_shards_hold_the_kept_samples_whole(tmp_path: Path, form: int, name: str) -> None:
    keys = ("a", "b", "c", "d") if form == tarfile.USTAR_FORMAT else ("a" * 150, "b" * 150, "ç/" * 60 + "c", "d")
    shard = _shard(tmp_path / "data" / name, _members(*keys), form)
    table = _scores(tmp_path / "data" / "0.parquet", [(key, *row[1:]) for key, row in zip(keys, ROWS, strict=True)])
    before = shard.read_bytes()
    tally = filter_shards([table], LOW, tmp_path / "kept")
    assert tally == Tally(kept=2, dropped=2, failed=1, shards=1)
    old = _contents(shard)
    assert _contents(tmp_path / "kept" / name) == [*old[:3], *old[9:]]
    assert shard.read_bytes() == before
    assert sorted(os.listdir(tmp_path / "kept")) == sorted([name, "filter.json"])


def test_keeping_everything_copies_the_tar_byte_for_byte(data: Path, tmp_path: Path) -> None:
    filter_shards([data / "0.parquet"], Wanted(below=1, keep_errors=True), tmp_path / "kept")
    assert (tmp_path / "kept" / "0.tar").read_bytes() == (data / "0.tar").read_bytes()


def test_keeping_nothing_makes_an_empty_tar(data: Path, tmp_path: Path) -> None:
    filter_shards([data / "0.parquet"], Wanted(below=0), tmp_path / "kept")
    assert list(iter_samples(tmp_path / "kept" / "0.tar")) == []
    assert _contents(tmp_path / "kept" / "0.tar") == []


def test_the_command_writes_shards_into_a_folder(data: Path, tmp_path: Path) -> None:
    result = _run(data / "0.parquet", "--below", 0.2, "--out", tmp_path / "kept")
    expected = "1 kept, 3 dropped; 1 of them without a score; 1 shards written, 0 finished before\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", expected)
    assert _keys(tmp_path / "kept" / "0.tar") == ["a"]


def test_shards_may_lie_elsewhere(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores" / "0.parquet"
    table.parent.mkdir()
    (data / "0.parquet").rename(table)
    result = _run(table, "--below", 0.2, "--out", tmp_path / "kept")
    assert (result.exit_code, "there is no 0.tar in" in result.stderr) == (2, True)
    assert _run(table, "--below", 0.2, "--out", tmp_path / "kept", "--shards", data).exit_code == 0


def test_the_order_of_the_table_does_not_matter(data: Path, tmp_path: Path) -> None:
    _scores(data / "0.parquet", ROWS[::-1])
    filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")
    assert _keys(tmp_path / "kept" / "0.tar") == ["a", "d"]


def test_what_belongs_to_no_sample_is_left_and_headers_for_all_are_kept(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "for all"}) as archive:
        for name in ("._a.jpg", "a.jpg", "README", "b.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    filter_shards([_scores(tmp_path / "0.parquet", [ROWS[0], ROWS[1]])], LOW, tmp_path / "kept")
    with tarfile.open(tmp_path / "kept" / "0.tar") as archive:
        assert archive.getnames() == ["a.jpg"]
        assert archive.pax_headers == {"comment": "for all"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:2], "no row for 'c', 'd'"),
        ([*ROWS, ("e", 0.1, 0, None)], "rows without a sample: 'e'"),
        ([*ROWS, ROWS[0]], "rows without a sample: 'a'"),
        ([(f"x{number}", 0.1, 0, None) for number in range(9)], "'x4' and 4 more"),
        ([], "no row for 'a'"),
    ],
)
def test_a_table_of_another_shard_is_refused(data: Path, tmp_path: Path, rows: list, words: str) -> None:
    table = _scores(data / "0.parquet", rows)
    with pytest.raises(FilterError, match=f"is not the table of .*0.tar: .*{words}"):
        filter_shards([table], LOW, tmp_path / "kept")
    assert os.listdir(tmp_path / "kept") == ["filter.json"]


def test_a_key_that_comes_twice_has_a_row_for_each(tmp_path: Path) -> None:
    members = [("a.jpg", b"first"), ("b.jpg", b"b"), ("a.jpg", b"second")]
    _shard(tmp_path / "0.tar", members)
    rows = [("a", 0.1, 0, None), ("b", 0.1, 0, None), ("a", None, None, "DUPLICATE_KEY: …")]
    filter_shards([_scores(tmp_path / "0.parquet", rows)], LOW, tmp_path / "kept")
    assert [content[:2] for content in _contents(tmp_path / "kept" / "0.tar")] == members[:2]


def test_keys_with_foreign_bytes_are_those_of_the_table(tmp_path: Path) -> None:
    keys = ["byte\udcff", "new\nline", "../up", "=1"]
    _shard(tmp_path / "0.tar", _members(*keys), tarfile.GNU_FORMAT)
    rows = [(text_from_path(key), 0.1, 0, None) for key in keys]
    filter_shards([_scores(tmp_path / "0.parquet", rows)], LOW, tmp_path / "kept")
    assert (tmp_path / "kept" / "0.tar").read_bytes() == (tmp_path / "0.tar").read_bytes()


def test_links_are_not_copied(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = tarfile.LNKTYPE, "b.jpg"
        archive.addfile(entry)
    table = _scores(tmp_path / "0.parquet", ROWS[:1])
    with pytest.raises(FilterError, match=r"'a\.jpg' is a hard link"):
        filter_shards([table], LOW, tmp_path / "kept")


def test_a_shard_cut_off_is_refused(data: Path, tmp_path: Path) -> None:
    shard = data / "0.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ShardError, match="cut off at byte 5000"):
        filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")
    assert os.listdir(tmp_path / "kept") == ["filter.json"]
    assert _run(data / "0.parquet", "--below", 1, "--out", tmp_path / "kept2").exit_code == 1


# Running again


def _three(folder: Path) -> list[Path]:
    for number in range(3):
        _shard(folder / f"{number}.tar", _members("a", "b"))
    return [_scores(folder / f"{number}.parquet", [ROWS[0], ROWS[1]]) for number in range(3)]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tables = _three(tmp_path / "data")
    kept = tmp_path / "kept"

    def stop_after_two(shard: Path, tally: Tally) -> None:
        if tally.shards == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_shards(tables, LOW, kept, tell=stop_after_two)
    (kept / ".2.tar.99.partial").write_bytes(b"what a killed run leaves")
    first = (kept / "0.tar").stat()
    assert filter_shards(tables, LOW, kept) == Tally(kept=1, dropped=1, shards=1, finished=2)
    assert (kept / "0.tar").stat() == first
    assert sorted(os.listdir(kept)) == ["0.tar", "1.tar", "2.tar", "filter.json"]
    assert filter_shards(tables, LOW, kept, overwrite=True) == Tally(kept=3, dropped=3, shards=3)


def test_shards_filtered_otherwise_are_not_taken_for_finished(data: Path, tmp_path: Path) -> None:
    filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")
    for other in (Wanted(below=0.2), Wanted(below=0.5, keep_errors=True), Wanted(bands=("allow",))):
        with pytest.raises(FilterError, match=r'was filtered with .*"below": 0\.5.* give --overwrite'):
            filter_shards([data / "0.parquet"], other, tmp_path / "kept")
    filter_shards([data / "0.parquet"], Wanted(below=0.2), tmp_path / "kept", overwrite=True)
    assert _keys(tmp_path / "kept" / "0.tar") == ["a"]


@pytest.mark.parametrize("newer", ["0.tar", "0.parquet"])
def test_a_shard_older_than_what_it_came_from_is_not_finished(data: Path, tmp_path: Path, newer: str) -> None:
    filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")
    later = (tmp_path / "kept" / "0.tar").stat().st_mtime + 5
    os.utime(data / newer, (later, later))
    with pytest.raises(FilterError, match="is older than"):
        filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")


def test_the_old_shards_are_never_the_target(data: Path, tmp_path: Path) -> None:
    before = (data / "0.tar").read_bytes()
    (tmp_path / "link").symlink_to(data)
    for out in (data, tmp_path / "link"):
        with pytest.raises(FilterError, match="which would be replaced"):
            filter_shards([data / "0.parquet"], LOW, out, overwrite=True)
    assert (data / "0.tar").read_bytes() == before


def test_two_shards_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    _shard(tmp_path / "more" / "0.tar", _members("a"))
    table = _scores(tmp_path / "more" / "0.parquet", ROWS[:1])
    with pytest.raises(FilterError, match="would both be written to"):
        filter_shards([data / "0.parquet", table], LOW, tmp_path / "kept")
    _shard(data / "0.tgz", _members("a"))
    with pytest.raises(FilterError, match=r"both 0\.tar and 0\.tgz"):
        filter_shards([data / "0.parquet"], LOW, tmp_path / "kept")


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"old")

    def write_to_a_full_disk() -> None:
        with whole_file(path) as file, open("/dev/full", "wb") as full:
            file.write(b"new")
            full.write(bytes(1 << 20))

    with pytest.raises(OSError, match="No space left"):
        write_to_a_full_disk()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["0.tar"]


_DATA = st.binary(max_size=1500)
_SAMPLES = st.dictionaries(
    st.text(alphabet="ab0/é-", min_size=1, max_size=130).filter(lambda key: not key.endswith("/")),
    st.tuples(st.lists(_DATA, min_size=1, max_size=3), st.one_of(st.none(), st.floats(0, 1, width=32))),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(samples=_SAMPLES, below=st.floats(0, 1), packed=st.booleans(), gnu=st.booleans(), errors=st.booleans())
def test_any_shard_keeps_exactly_the_wanted_samples(
    tmp_path_factory: pytest.TempPathFactory, samples: dict, below: float, packed: bool, gnu: bool, errors: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    ends = (".jpg", ".json", ".seg.png")
    members = [(key + end, data) for key, (files, _) in samples.items() for end, data in zip(ends, files, strict=False)]
    form = tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT
    shard = _shard(folder / ("0.tgz" if packed else "0.tar"), members, form)
    rows = [(key, score, None, None if score is not None else "ERROR: no") for key, (_, score) in samples.items()]
    rule = Wanted(below=below, keep_errors=errors)
    tally = filter_shards([_scores(folder / "0.parquet", rows)], rule, folder / "kept")
    limit = pa.scalar(below, pa.float32()).as_py()
    stay = {key for key, (_, score) in samples.items() if (errors if score is None else score < limit)}
    expected = [content for content in _contents(shard) if content[0].partition(".")[0] in stay]
    assert _contents(folder / "kept" / shard.name) == expected
    assert (tally.kept, tally.dropped) == (len(stay), len(samples) - len(stay))


def test_columns_are_found_by_head(data: Path) -> None:
    assert columns_of(data / "0.parquet", LOW) == Columns("key", "nsfw_score", "nsfw_decision", (), "error")
