"""`clipsieve score` over WebDataset shards: a Parquet beside each."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsieve import Retry
from tests.command_line import run_cli
from tests.fakes import fake_score


def _shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        samples = {f"{number}{index:03}.jpg": f"image {number} {index}".encode() for index in range(40)}
        _shard(folder / f"{number:05}.tar", samples | {"zz/../../up.png": b"up", "caption.txt": b"no image"})
    return folder


def test_each_shard_gets_a_table_with_its_keys(url, shards):
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    result = run_cli("score", *sorted(shards.glob("*.tar")), "--url", url)
    assert result.exit_code == 3  # the sample without an image
    assert sorted(os.listdir(shards)) == ["00000.parquet", "00000.tar", "00001.parquet", "00001.tar"]
    assert {name: (shards / name).read_bytes() for name in before} == before
    table = pq.read_table(shards / "00001.parquet")
    names = ["key", "demo_score", "demo_decision", "demo_class_name", "error", "model_version"]
    assert table.schema.names == names
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [f"1{index:03}" for index in range(40)] + ["zz/../../up", "caption"]
    assert np.float32(rows[7]["demo_score"]) == fake_score(b"image 1 7")
    assert rows[41]["error"].startswith("NO_IMAGE: ")
    assert not (shards.parent / "up.parquet").exists()


def test_finished_shards_are_passed_over(url, model, shards, tmp_path):
    arguments = ["score", f"{shards}/*.tar", "--url", url, "--out", tmp_path / "scores"]
    assert run_cli(*arguments).exit_code == 3
    assert sorted(os.listdir(tmp_path / "scores")) == ["00000.parquet", "00001.parquet"]
    (tmp_path / "scores" / "00000.parquet").unlink()
    model.seen.clear()
    result = run_cli(*arguments)
    assert "1 of 2 shards had their table already" in result.stderr
    assert len(model.seen) == 41


def test_shard_goes_on_where_it_was_killed(url, model, shards, monkeypatch):
    monkeypatch.setattr(Retry.__init__, "__defaults__", (1, 0.01, 0.05, 2.5))
    arguments = ["score", shards, "--pattern", "*.tar", "--url", url, "--wait", "0", "--concurrency", "2"]
    model.dead_after = 60
    assert run_cli(*arguments).exit_code == 5
    assert sorted(os.listdir(shards)) == ["00000.parquet", "00000.tar", "00001.parquet.partial", "00001.tar"]
    model.dead_after = None
    model.seen.clear()
    result = run_cli(*arguments)
    assert "going on after" in result.stderr
    assert len(model.seen) < 41
    assert pq.read_table(shards / "00001.parquet")["key"].to_pylist()[:40] == [f"1{index:03}" for index in range(40)]


def test_truncated_shard_has_no_table_and_the_others_do(url, shards):
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(whole[:9000])
    result = run_cli("score", *sorted(shards.glob("*.tar")), "--url", url)
    assert result.exit_code == 3
    assert "00000.tar: cut off at byte" in result.stderr
    assert sorted(os.listdir(shards)) == ["00000.tar", "00001.parquet", "00001.tar"]
    (shards / "00000.tar").write_bytes(whole)
    assert run_cli("score", *sorted(shards.glob("*.tar")), "--url", url).exit_code == 3
    assert len(pq.read_table(shards / "00000.parquet")) == 42


def test_tables_of_other_heads_are_not_mistaken(url, model, shards):
    run_cli("score", shards / "00000.tar", "--url", url)
    model.heads = {"other": model.heads["demo"]}
    result = run_cli("score", shards / "00000.tar", "--url", url)
    assert result.exit_code == 2
    assert "already exists with the columns key, demo_score" in result.stderr


def test_shards_of_several_versions_are_refused_or_recorded(url, shards, monkeypatch):
    run_cli("score", shards / "00000.tar", "--url", url)
    monkeypatch.setattr("tests.fakes.REVISION", 7)
    arguments = ["score", *sorted(shards.glob("*.tar")), "--url", url]
    result = run_cli(*arguments)
    assert result.exit_code == 1
    assert "the model version changed from demo-0123456789abcdef to demo-0000000000000007" in result.stderr
    assert run_cli(*arguments, "--allow-version-change").exit_code == 3
    assert sorted(os.listdir(shards)) == ["00000.parquet", "00000.tar", "00001.parquet", "00001.tar"]


def test_usage(url, shards, tmp_path):
    (tmp_path / "a.parquet").touch()
    for arguments, message in [
        ((shards / "00000.tar", tmp_path / "a.jpg"), "score them in two runs"),
        ((shards / "00000.tar", "--out", tmp_path / "a.parquet"), "--out is the folder for their tables"),
        ((tmp_path / "a", "--pattern", "*.tar"), "is no shard"),
    ]:
        result = run_cli("score", *arguments, "--url", url)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr


# ---- a table that lies beside a shard ----


@pytest.fixture
def described(shards):
    """The shards as img2dataset leaves them: a row for each address, also for those that could not be fetched."""
    for number in range(2):
        keys = [f"{number}{index:03}" for index in range(40)]
        rows = {
            "key": [*keys[:20], f"{number}999", *keys[20:39]],
            "url": [f"https://example.org/{key}" for key in [*keys[:20], "gone", *keys[20:39]]],
        }
        pq.write_table(pa.table(rows), shards / f"{number:05}.parquet")
    return shards


def test_the_table_beside_a_shard_is_not_replaced(url, described):
    before = (described / "00000.parquet").read_bytes()
    for more in ((), ("--overwrite",)):
        result = run_cli("score", described / "00000.tar", "--url", url, *more)
        assert result.exit_code == 2
        assert "00000.parquet has columns of its own (key, url) and is not replaced: give --out FOLDER" in result.stderr
    assert (described / "00000.parquet").read_bytes() == before


def _check_joined(table: pa.Table) -> None:
    own = ["demo_score", "demo_decision", "demo_class_name", "error", "model_version"]
    assert table.column_names == ["key", "url", *own]
    rows = {row["key"]: row for row in table.to_pylist()}
    assert list(rows)[:40] == [*(f"0{index:03}" for index in range(20)), "0999", *(f"0{n:03}" for n in range(20, 39))]
    assert np.float32(rows["0007"]["demo_score"]) == fake_score(b"image 0 7")
    assert rows["0007"]["url"] == "https://example.org/0007"
    assert rows["0999"]["demo_score"] is None
    assert rows["0999"]["error"] == "NO_SAMPLE: the shard has no sample of this key"
    assert list(rows)[40:] == ["0039", "zz/../../up", "caption"]
    assert np.float32(rows["0039"]["demo_score"]) == fake_score(b"image 0 39")
    assert rows["0039"]["url"] is None


def test_scores_are_joined_into_another_folder(url, described, tmp_path):
    before = (described / "00000.parquet").read_bytes()
    arguments = ["score", described / "00000.tar", "--url", url, "--out", tmp_path / "out"]
    result = run_cli(*arguments)
    assert result.exit_code == 3
    assert "rows without a sample: 1, samples without a row, added at its end: 3" in result.stderr
    _check_joined(pq.read_table(tmp_path / "out" / "00000.parquet"))
    assert (described / "00000.parquet").read_bytes() == before
    assert "1 of 1 shards had their table already" in run_cli(*arguments).stderr
    assert run_cli(*arguments, "--overwrite").exit_code == 3
    _check_joined(pq.read_table(tmp_path / "out" / "00000.parquet"))


def test_scores_are_joined_in_place_and_the_old_table_is_kept(url, model, described):
    before = (described / "00000.parquet").read_bytes()
    arguments = ["score", described / "00000.tar", "--url", url, "--in-place"]
    assert run_cli(*arguments).exit_code == 3
    first = pq.read_table(described / "00000.parquet")
    _check_joined(first)
    assert (described / "00000.parquet.bak").read_bytes() == before
    model.seen.clear()
    assert run_cli(*arguments).exit_code == 0  # nothing left to do
    assert not model.seen
    assert run_cli(*arguments, "--overwrite").exit_code == 3
    again = pq.read_table(described / "00000.parquet")
    assert again.drop(["error"]).equals(first.drop(["error"])), "only the scores are written anew"
    assert (described / "00000.parquet.bak").read_bytes() == before
    (described / "a.jpg").write_bytes(b"image")
    taken = ["score", described / "a.jpg", "--url", url, "--out", described / "00000.parquet", "--overwrite"]
    assert run_cli(*taken).exit_code == 2, "with scores in it, the table is still its owner's"
    (described / "a.jpg").unlink()
    assert sorted(os.listdir(described)) == [
        *("00000.parquet", "00000.parquet.bak", "00000.tar", "00001.parquet", "00001.tar")
    ]


def test_a_table_without_keys_is_left_alone(url, shards, tmp_path):
    pq.write_table(pa.table({"url": ["a"]}), shards / "00000.parquet")
    result = run_cli("score", shards / "00000.tar", "--url", url, "--in-place")
    assert (result.exit_code, "has no column key or __key__" in result.stderr) == (2, True)
    result = run_cli("score", shards / "00000.tar", "--url", url, "--out", tmp_path / "out")
    assert "has no column of keys and is not joined" in result.stderr
    assert pq.read_schema(tmp_path / "out" / "00000.parquet").names[0] == "key"


def test_in_place_is_for_shards_alone(url, shards, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    assert run_cli("score", tmp_path / "a.jpg", "--url", url, "--in-place").exit_code == 2
    result = run_cli("score", shards / "00000.tar", "--url", url, "--in-place", "--out", tmp_path / "out")
    assert (result.exit_code, "goes without --out" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "photo,owner\na.jpg,me\n"), ("a.json", '[{"caption": "a dog"}]'), ("a.jsonl", '{"url": "x"}\n')],
)
def test_overwrite_replaces_no_table_of_somebody_else(url, tmp_path, name, text):
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / name).write_text(text)
    result = run_cli("score", tmp_path / "a.jpg", "--url", url, "--out", tmp_path / name, "--overwrite")
    assert result.exit_code == 2
    assert f"{tmp_path / name} was not written by clipsieve (its columns are " in result.stderr
    assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_overwrite_replaces_what_score_wrote(url, tmp_path, suffix):
    (tmp_path / "a.jpg").write_bytes(b"image")
    arguments = ["score", tmp_path / "a.jpg", "--url", url, "--out", tmp_path / f"a.{suffix}", "--overwrite"]
    assert [run_cli(*arguments).exit_code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    "names",
    [
        ["video_path", "nsfw_score", "nsfw_time_s", "frames", "duration_s", "stopped", "error", "model_version"],
        ["url", "caption", "nsfw_score", "error", "model_version"],  # stored embeddings, beside their metadata
        ["image_path", "punsafe", "error"],  # a list of `clipsieve filter`, by a column of another name
        ["key", "shard", "score", "error"],
        ["image_path", "embedding", "error"],
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_table_of_ours_may_be_replaced(url, tmp_path, names, suffix):
    (tmp_path / "a.jpg").write_bytes(b"image")
    out = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        out.write_text(",".join(names) + "\n")
    else:
        pq.write_table(pa.table({name: [""] for name in names}), out)
    assert run_cli("score", tmp_path / "a.jpg", "--url", url, "--out", out, "--overwrite").exit_code == 0
