"""Runs that are killed, and go on: one row for each input, nothing lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from clipsieve import Columns, Head, Retry
from clipsieve.exceptions import OutputRefused
from clipsieve.partial import PartialRun
from clipsieve.resume import Done
from tests.command_line import run_cli
from tests.fakes import REVISION, FakeModel, fake_score

SCHEMA = Columns((Head("demo", ("ring",), ("disc", "ring")),)).schema()
NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", "\udcff"]), max_size=8)


def _row(name: str) -> tuple:
    return name, 0.5, 1, "ring", "block", None, "demo-00"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.jpg").write_bytes(f"image {number}".encode())
    return folder


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(Retry.__init__, "__defaults__", (2, 0.01, 0.05, 2.5))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("clipsieve.commits.COMMIT_ROWS", 16)


# --- which inputs are done ---


@given(rows=NAMES, inputs=NAMES)
def test_each_input_without_a_row_is_left(rows, inputs):
    """Inputs and rows are multisets: a name that is given twice has two rows."""
    written = [name.replace("\udcff", "\\udcff") for name in rows]
    done = Done(written)
    left = Counter(name for name, _ in done.without((name, name) for name in inputs))
    assert left == Counter(inputs) - Counter(rows)
    assert done.left_over == (Counter(rows) - Counter(inputs)).total()


def test_rows_in_the_order_of_the_inputs_are_not_remembered():
    done = Done(map(str, range(1000)))
    left = done.without((str(number), str(number)) for number in range(1003))
    assert [name for name, _ in left] == ["1000", "1001", "1002"]
    assert done._hashes is None


def test_rest_of_the_rows_is_remembered_by_little():
    done = Done(str(number) for number in range(20_000))
    names = itertools.chain(["new"], (str(number) for number in range(20_000)))
    left = [name for name, _ in done.without((name, name) for name in names)]
    assert left == ["new"]
    assert done._hashes is not None
    assert done._hashes.nbytes + done._counts.nbytes == 20_000 * 12


# --- committed rows ---


def _open(folder: Path, identity: dict | None = None, overwrite: bool = False) -> PartialRun:
    return PartialRun(folder / "out.parquet", identity or {"inputs": "photos"}, SCHEMA, overwrite)


def test_committed_rows_are_there_in_order(tmp_path):
    with _open(tmp_path) as run:
        run.commit([_row("a"), _row("b")])
    with _open(tmp_path) as run:
        run.commit([_row("c")])
        assert run.rows == 3
        assert [name for table in run.tables(["image_path"]) for name in table[0].to_pylist()] == ["a", "b", "c"]
        assert run.last("model_version") == "demo-00"


def test_another_command_is_refused_and_says_how_it_differs(tmp_path):
    with _open(tmp_path, {"inputs": "photos", "threshold": None}) as run:
        run.commit([_row("a")])
    with pytest.raises(OutputRefused, match=r"unfinished run with other threshold: null, now 0.5. repeat the command"):
        _open(tmp_path, {"inputs": "photos", "threshold": 0.5})
    with _open(tmp_path, {"inputs": "photos", "threshold": 0.5}, overwrite=True) as run:
        assert run.rows == 0


def test_two_processes_cannot_write_one_output(tmp_path):
    with _open(tmp_path), pytest.raises(OutputRefused, match="another process is writing to"):
        _open(tmp_path)


def test_part_that_was_being_written_is_not_there(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with _open(tmp_path) as run:
        run.commit([_row("a")])
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                run.commit([_row("b")])
    (tmp_path / "out.parquet.partial" / "rows-000002-00001.parquet.tmp").write_bytes(b"killed")
    with _open(tmp_path) as run:
        assert run.rows == 1
        run.commit([_row("b")])
        assert run.rows == 2


def test_damaged_part_is_named(tmp_path):
    with _open(tmp_path) as run:
        run.commit([_row("a")])
        (run.folder / "rows-000001-00001.parquet").write_bytes(b"garbage")
        with pytest.raises(OutputRefused, match=r"rows-000001-00001.parquet is damaged .* or give --overwrite"):
            list(run.tables())


def test_run_without_rows_leaves_nothing(tmp_path):
    with _open(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("killed_before", ["replace", "unlink", "rmdir"])
def test_output_is_put_in_its_place_by_the_next_process(tmp_path, monkeypatch, killed_before):
    """The run is killed after the output was complete: before, during and after it is moved."""

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    run = _open(tmp_path)
    run.commit([_row("a")])
    with monkeypatch.context() as system:
        real = getattr(Path, killed_before)

        def killing(path, *arguments, **options):
            if killed_before == "replace" and path.name != "output":
                return real(path, *arguments, **options)
            raise Killed

        system.setattr(Path, killed_before, killing)
        with pytest.raises(Killed):
            run.finish(lambda file: file.write(b"table"), {"rows": 1, "failed": 0})
    run._lock.close()
    if killed_before != "rmdir":  # with only the empty folder left, it is finished
        with _open(tmp_path) as again:
            assert again.finished == {"rows": 1, "failed": 0}
            again.publish()
        assert os.listdir(tmp_path) == ["out.parquet"]
    assert (tmp_path / "out.parquet").read_bytes() == b"table"


def test_run_that_replaces_an_output_goes_on_without_saying_so_again(tmp_path):
    pq.write_table(SCHEMA.empty_table(), tmp_path / "out.parquet")
    old = (tmp_path / "out.parquet").read_bytes()
    with pytest.raises(OutputRefused, match="already exists"):
        _open(tmp_path)
    with _open(tmp_path, overwrite=True) as run:
        run.commit([_row("a")])
    with _open(tmp_path) as run:
        assert run.rows == 1
    assert (tmp_path / "out.parquet").read_bytes() == old


# --- the command ---


def test_version_change_is_refused_or_recorded(url, model, photos, tmp_path, small_parts, monkeypatch):
    out = tmp_path / "out.parquet"
    arguments = ["score", photos, "--url", url, "--out", out, "--wait", "0", "--concurrency", "4"]
    model.dead_after = 100
    assert run_cli(*arguments).exit_code == 5
    model.dead_after = None
    monkeypatch.setattr("tests.fakes.REVISION", 7)
    result = run_cli(*arguments)
    assert result.exit_code == 1
    assert f"the model version changed from demo-{REVISION:016x} to demo-{7:016x}" in result.stderr
    assert "rows are kept in" in result.stderr
    assert not out.exists()
    assert run_cli(*arguments, "--allow-version-change").exit_code == 0
    versions = Counter(pq.read_table(out)["model_version"].to_pylist())
    assert set(versions) == {f"demo-{REVISION:016x}", f"demo-{7:016x}"}
    assert versions.total() == 300


def test_version_change_in_the_middle_of_a_run(url, model, photos, tmp_path, small_parts, monkeypatch):
    real = FakeModel._tensor

    def changing(self, name, image):
        tensor = real(self, name, image)
        return tensor + 1 if name.endswith("_revision") and image == b"image 150" else tensor

    monkeypatch.setattr(FakeModel, "_tensor", changing)
    result = run_cli("score", photos, "--url", url, "--out", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "not finished: 150 rows are kept in" in result.stderr


def test_files_that_came_and_went_in_between(url, model, photos, tmp_path, small_parts):
    out = tmp_path / "out.parquet"
    arguments = ["score", photos, "--url", url, "--out", out, "--wait", "0", "--concurrency", "4"]
    model.dead_after = 100
    assert run_cli(*arguments).exit_code == 5
    model.dead_after = None
    (photos / "000.jpg").unlink()
    (photos / "0005.jpg").write_bytes(b"new")
    result = run_cli(*arguments)
    assert result.exit_code == 0
    assert "rows kept from before of files that are no longer among the inputs: 1" in result.stderr
    rows = pq.read_table(out)["image_path"].to_pylist()
    expected = [f"{photos}/{number:03}.jpg" for number in range(300)] + [f"{photos}/0005.jpg"]
    assert Counter(rows) == Counter(expected)


def test_other_inputs_are_refused(url, model, photos, tmp_path, small_parts):
    model.dead_after = 50
    common = ["--url", url, "--out", tmp_path / "out.csv", "--wait", "0"]
    assert run_cli("score", photos, *common).exit_code == 5
    result = run_cli("score", photos / "000.jpg", *common)
    assert result.exit_code == 2
    assert "unfinished run with other inputs" in result.stderr


def test_inputs_given_twice_have_two_rows(url, model, photos, tmp_path, small_parts):
    arguments = ["score", photos, photos, "--url", url, "--out", tmp_path / "out.parquet", "--wait", "0"]
    model.dead_after = 400
    assert run_cli(*arguments).exit_code == 5
    model.dead_after = None
    assert run_cli(*arguments).exit_code == 0
    rows = Counter(pq.read_table(tmp_path / "out.parquet")["image_path"].to_pylist())
    assert set(rows.values()) == {2}
    assert len(rows) == 300


def test_full_disk_keeps_what_was_committed(url, photos, tmp_path, small_parts, monkeypatch):
    real, calls = os.fsync, itertools.count()

    def filling(descriptor):
        if next(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    arguments = ["score", photos, "--url", url, "--out", tmp_path / "out.parquet"]
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", filling)
        result = run_cli(*arguments)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    result = run_cli(*arguments)
    assert "going on after" in result.stderr
    assert len(pq.read_table(tmp_path / "out.parquet")) == 300


def test_embeddings_go_on_too(url, model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("clipsieve.cli.embed._COMMIT_ROWS", 16)
    arguments = ["embed", photos, "--url", url, "--out", tmp_path / "out.npy", "--wait", "0", "--concurrency", "4"]
    model.dead_after = 100
    assert run_cli(*arguments).exit_code == 5
    model.dead_after = None
    assert run_cli(*arguments).exit_code == 0
    expected = [fake_score(f"image {number}".encode()) for number in range(300)]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, 0], expected)


def _kill_once(command: list, model: FakeModel, images: int, after_s: float) -> None:
    """Start the command and kill it some time after it has sent so many images; the rest are never answered."""
    model.released.clear()
    model.pause_after = len(model.seen) + images
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: process.poll() is not None or len(model.seen) > (model.pause_after or 0), pause_s=0.002)
        time.sleep(after_s)  # answers come, and rows are written
        process.kill()
        _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    model.pause_after = None
    model.released.set()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_killed_at_any_moment_it_ends_with_one_row_each(url, model, photos, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    start = "import clipsieve.commits as b; b.COMMIT_ROWS = 20; from clipsieve.cli.main import main; main()"
    command = [sys.executable, "-c", start, "score", photos, "--url", url, "--out", out, "--concurrency", "4"]
    rng = random.Random(1)
    for _ in range(4):
        _kill_once(command, model, images=rng.randint(5, 60), after_s=rng.uniform(0, 0.1))
    assert not out.exists()
    subprocess.run(command, stderr=subprocess.PIPE, check=True)
    lines = pq.read_table(out).to_pylist() if suffix == ".parquet" else map(json.loads, out.read_text().splitlines())
    rows = [(row["image_path"], np.float32(row["probability"])) for row in lines]
    expected = {(f"{photos}/{number:03}.jpg", fake_score(f"image {number}".encode())) for number in range(300)}
    assert set(rows) == expected
    assert len(rows) == 300
    assert sorted(os.listdir(tmp_path)) == [out.name, f"{out.name}.run.json", "photos"]
