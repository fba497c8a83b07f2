"""`clipsieve score` over WebDataset shards: a Parquet beside each."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
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
