"""Bulk jobs on real Ray and a real tritonserver: plans, scores, outputs, and the death of machines and drivers."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc
from pictures import jpeg
from ray_cluster import two_raylets
from typer.testing import CliRunner
from waiting import PATIENCE_S, settled, until

from clipsieve import Head, NotClipsieve, ServerUnavailable, VersionChanged
from clipsieve.cli.bulk import app
from clipsieve.client import AsyncClient
from clipsieve.exceptions import InputRefused, OutputRefused
from clipsieve.inputs import Inputs
from clipsieve.joined import joined_table, read_metadata
from clipsieve.ray import job
from clipsieve.ray.part import read_part
from clipsieve.ray.plan import Plan, names_in, planned, planned_for
from clipsieve.ray.storage import file_names, files_below, joined, locate, whole_file
from clipsieve.ray.unit import Job, Outcome, Servers, Status, UnitScorer, served
from clipsieve.scoring import Columns
from tests.fakes import REVISION, UNKNOWN_MODEL, FakeModel, demo_parameters, fake_score, serve_grpc

HEADS = {"head": None, "threshold": None, "operating_point": None}
"""What a command without these options asks for."""
VERSION = f"demo-{REVISION:016x}"


@pytest.fixture
def memory():
    """An address on a file system that is not the disk."""
    address = f"memory://{uuid4().hex}"
    yield address
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(f"photo {number}".encode())
    return folder


def _put(address: str, data: bytes) -> str:
    with whole_file(address) as file:
        file.write(data)
    return address


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _plan(out, *paths, rows: int = 4, overwrite: bool = False, **options) -> Plan:
    return planned(str(out), Inputs(tuple(map(str, paths))), rows, options, overwrite)


def _job(plan: Plan, *urls: str, version: str | None = VERSION, wait_s: float = 0, changes: bool = False) -> Job:
    client = AsyncClient(",".join(urls), timeout_s=PATIENCE_S, wait_s=wait_s)
    key = "key" if plan.of_shards else "image_path"
    columns = Columns((Head.from_parameters("demo", demo_parameters()),), key=key)
    return Job(plan, Servers.of(client), columns, version, changes)


def _score(job: Job, *units: int) -> list[Outcome]:
    with closing(UnitScorer(job)) as scorer:
        return [scorer.score(unit) for unit in (units or range(job.plan.units))]


def _rows(out) -> dict[str, list]:
    """Every column of all the files, in the order of their names."""
    rows: dict[str, list] = {}
    for name in sorted(name for name in file_names(str(out)) if not name.startswith("_") and name.endswith(".parquet")):
        filesystem, path = locate(joined(str(out), name))
        with filesystem.open_input_file(path) as file:
            for column, values in pq.read_table(file).to_pydict().items():
                rows.setdefault(column, []).extend(values)
    return rows


# ---- names and places ----


def test_remote_folders_and_patterns(memory):
    for name in ("a/1.jpg", "a/b/2.PNG", "a/b/note.txt", "c/3 é#?.webp"):
        _put(f"{memory}/{name}", b"x")

    def below(name, pattern=None):
        inputs = Inputs((), pattern)
        return [each.removeprefix(f"{memory}/") for each in files_below(f"{memory}/{name}".rstrip("/"), inputs)]

    assert below("") == ["a/1.jpg", "a/b/2.PNG", "c/3 é#?.webp"]
    assert below("a", "*.txt") == ["a/b/note.txt"]
    assert below("a", "b/*") == ["a/b/2.PNG", "a/b/note.txt"]
    assert below("*/*.jpg") == ["a/1.jpg"]
    assert below("**/*.[!t]*") == ["a/1.jpg", "a/b/2.PNG", "c/3 é#?.webp"]
    assert below("a/1.jpg") == ["a/1.jpg"]
    assert below("missing.jpg") == ["missing.jpg"]
    with pytest.raises(InputRefused, match="no file matches"):
        below("*/*.gif")


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_what_folders_hold_besides_is_counted(place, memory, tmp_path):
    base = str(tmp_path / "in") if place == "disk" else memory
    for name in ("a.jpg", "b.heic", "c.heic", "._a.jpg", "d.txt"):
        Path(base).mkdir(exist_ok=True) if place == "disk" else None
        _put(f"{base}/{name}", b"any")
    plan = _plan(f"{tmp_path}/out", base)
    assert dict(plan.passed_over) == {".heic": 2, "file of macOS (._*, .DS_Store, __MACOSX)": 1, ".txt": 1}
    assert dict(_plan(f"{tmp_path}/out", base).passed_over) == dict(plan.passed_over)
    with pytest.raises(InputRefused, match=r"nothing to do: .* \(passed over: "):
        planned(str(tmp_path / "other"), Inputs((base,), "*.xyz"), 4, {}, False)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_formats_of_the_servers_are_taken_from_folders(place, memory, tmp_path):
    """As `clipsieve score` does; but what was begun goes on as it was planned."""
    base, out = str(tmp_path / "in") if place == "disk" else memory, str(tmp_path / "out")
    for name in ("a.jpg", "b.heic", "c.tif", "d.txt", "._e.heic"):
        Path(base).mkdir(exist_ok=True) if place == "disk" else None
        _put(f"{base}/{name}", b"any")

    def names(plan: Plan) -> list[str]:
        return [name.removeprefix(f"{base}/") for unit in range(plan.units) for name in plan.names(unit)]

    inputs = Inputs((base,))
    first = planned(out, inputs, 4, HEADS)
    assert names(first) == ["a.jpg"]
    assert planned_for(["JPEG"], first, inputs, 4, HEADS) == first
    plan = planned_for(["HEIC", "JPEG"], first, inputs, 4, HEADS)
    assert names(plan) == ["a.jpg", "b.heic"]
    assert plan.run_id != first.run_id
    assert {".tif": 1, ".txt": 1}.items() <= plan.passed_over.items()
    assert planned(out, Inputs((base,)), 4, HEADS) == plan == planned_for(["HEIC"], plan, inputs, 4, HEADS)
    assert names(planned_for(["TIFF"], plan, inputs, 4, HEADS)) == ["a.jpg", "c.tif"]


def test_a_folder_of_heic_alone_waits_for_the_servers_word(tmp_path):
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    (folder / "a.heic").write_bytes(b"any")
    inputs = Inputs((str(folder),))
    plan = planned(out, inputs, 4, HEADS)
    assert plan.names(0) == [str(folder / "a.heic")]
    plan = planned_for(["HEIC"], plan, inputs, 4, HEADS)
    assert (plan.names(0), plan.formats) == ([str(folder / "a.heic")], ["HEIC"])
    with pytest.raises(InputRefused, match=r"nothing to do: .* \(passed over: 1 .heic"):
        planned_for(["JPEG"], plan, inputs, 4, HEADS)
    assert file_names(out) == []


def test_a_folder_named_as_a_list_is_a_folder(tmp_path):
    folder = tmp_path / "lists.csv"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"any")
    assert list(names_in(Inputs((str(folder),)))) == [str(folder / "a.jpg")]


def test_scheme_nobody_knows_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="cannot be reached"):
        _plan(tmp_path / "out", "nosuch://bucket/a")


def test_options_of_a_bucket_stay_behind_the_name():
    assert joined("s3://b/scores/?endpoint_override=h:1", "x") == "s3://b/scores/x?endpoint_override=h:1"
    assert joined("/tmp/who?a=b", "x") == "/tmp/who?a=b/x"


def test_remote_lists_may_name_both_kinds_of_place(memory, tmp_path):
    listed = _put(f"{memory}/list.csv", f"image_path\na.jpg\n{memory}/b.jpg\n".encode())
    plan = _plan(tmp_path / "out", listed)
    assert plan.names(0) == ["a.jpg", f"{memory}/b.jpg"]
    assert plan.resolved("a.jpg") == os.path.abspath("a.jpg")
    assert plan.resolved(f"{memory}/b.jpg") == f"{memory}/b.jpg"


def test_file_that_is_not_finished_has_no_name(tmp_path, memory):
    for folder in (str(tmp_path), memory):
        writing = whole_file(f"{folder}/x")
        writing.__enter__().write(b"half")
        assert not writing.__exit__(OSError, OSError("the disk is full"), None)
        assert file_names(folder) == []


# ---- plans ----


def test_plan_is_the_same_when_it_is_made_again(photos, tmp_path):
    plan = _plan(tmp_path / "out", photos)
    (photos / "00.jpg").write_bytes(b"one that came later")
    again = _plan(tmp_path / "out", photos)
    assert again == plan
    assert [len(again.names(unit)) for unit in range(again.units)] == [4, 4, 2]
    assert [again.fits(2, rows) for rows in (2, 4)] == [True, False]
    assert [name for unit in range(3) for name in again.names(unit)] == [str(photos / f"{n}.jpg") for n in range(10)]


@pytest.mark.parametrize("change", [{"rows": 5}, {"threshold": 0.5}])
def test_another_command_may_not_go_on(photos, tmp_path, change):
    _plan(tmp_path / "out", photos)
    with pytest.raises(OutputRefused, match=r"rows_per_file: 4, now 5|threshold: null, now 0.5"):
        _plan(tmp_path / "out", photos, **change)


def test_folder_with_something_else_is_refused(photos, tmp_path):
    (tmp_path / "mine.parquet").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputRefused, match="no clipsieve-bulk wrote"):
            _plan(tmp_path, photos, overwrite=overwrite)


def test_overwrite_deletes_what_the_job_wrote_and_nothing_else(photos, tmp_path, url):
    out = tmp_path / "out"
    _score(_job(_plan(out, photos, rows=1), url))
    (out / "notes.txt").touch()
    plan = _plan(out, photos, rows=8, overwrite=True)
    assert sorted(os.listdir(out)) == ["_plan.parquet", "_run.json", "notes.txt"]
    _score(_job(plan, url))
    assert sorted(_rows(out)["image_path"]) == sorted(map(str, photos.iterdir()))


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["a.jpg", "b.tar"], "score them in two jobs"),
        (["b.tar", "a.jpg"], "is no shard"),
        (["x/a.tar", "y/a.tar.gz"], "both be written to a.parquet"),
    ],
)
def test_inputs_that_do_not_go_together(tmp_path, paths, problem):
    with pytest.raises(InputRefused, match=problem):
        _plan(tmp_path / "out", *paths)
    assert "_run.json" not in file_names(str(tmp_path / "out"))


def test_no_input_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="nothing to do"):
        _plan(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_utf8_survive(tmp_path, url):
    path = os.fsencode(tmp_path) + b"/\xff\n=.jpg"
    with open(path, "wb") as file:
        file.write(b"odd")
    plan = _plan(tmp_path / "out", os.fsdecode(path))
    _score(_job(plan, url))
    rows = _rows(tmp_path / "out")
    assert rows["probability"] == [pytest.approx(fake_score(b"odd"))]
    assert rows["image_path"] == [str(tmp_path) + "/\\udcff\n=.jpg"]


# ---- units ----


def test_images_and_errors_are_rows_in_order(photos, tmp_path, url):
    (photos / "3.jpg").write_bytes(b"BAD")
    plan = _plan(tmp_path / "out", photos, photos / "missing.jpg")
    outcomes = _score(_job(plan, url))
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    parts = [outcome.part for outcome in outcomes]
    assert [(part.rows, part.failures, part.model_versions) for part in parts if part] == [
        (4, {"NOT_AN_IMAGE": 1}, [VERSION]),
        (4, {}, [VERSION]),
        (3, {"UNREADABLE": 1}, [VERSION]),
    ]
    rows = _rows(tmp_path / "out")
    assert rows["image_path"] == [*map(str, sorted(photos.iterdir())), str(photos / "missing.jpg")]
    assert rows["probability"][0] == pytest.approx(fake_score(b"photo 0"))
    assert [row for row, error in enumerate(rows["error"]) if error] == [3, 10]


def test_remote_images_to_a_remote_folder(memory, url, tmp_path):
    names = [_put(f"{memory}/in/{number}.jpg", f"remote {number}".encode()) for number in range(5)]
    plan = _plan(f"{memory}/out", f"{memory}/in", f"{memory}/in/missing.jpg")
    _score(_job(plan, url))
    rows = _rows(f"{memory}/out")
    assert rows["image_path"] == [*names, f"{memory}/in/missing.jpg"]
    assert rows["probability"][4] == pytest.approx(fake_score(b"remote 4"))
    assert rows["error"][5].startswith("UNREADABLE")


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_shard_has_a_file_of_its_name(place, memory, tmp_path, url):
    base = str(tmp_path) if place == "disk" else memory
    data = _tar({"../a.jpg": b"one", "b.png": b"BAD", "c.json": b"{}"})
    shards = [_put(f"{base}/s-0.tar", data), _put(f"{base}/cut.tar", data[:700]), f"{base}/missing.tar"]
    plan = _plan(f"{base}/out", *shards)
    outcomes = _score(_job(plan, url))
    assert [outcome.status for outcome in outcomes] == ["done", "damaged", "damaged"]
    assert [outcome.message.partition(".tar")[0] for outcome in outcomes] == ["", f"{base}/cut", f"{base}/missing"]
    assert sorted(file_names(f"{base}/out")) == ["_plan.parquet", "_run.json", "s-0.parquet"]
    rows = _rows(f"{base}/out")
    assert rows["key"] == ["../a", "b", "c"]
    assert [error and error.partition(":")[0] for error in rows["error"]] == [None, "NOT_AN_IMAGE", "NO_IMAGE"]
    assert "demo_score" in rows


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_shard_is_joined_with_the_table_beside_it(place, memory, tmp_path, url):
    """The rows and columns are its owner's; another run on the result replaces the scores alone."""
    base = str(tmp_path / "in") if place == "disk" else memory
    Path(base).mkdir() if place == "disk" else None
    shard = _put(f"{base}/0.tar", _tar({"a.jpg": b"one", "b.jpg": b"BAD", "z.jpg": b"three"}))
    table = pa.table({"key": ["b", "gone", "a"], "url": ["http://b", None, "http://a"], "width": [3, 2, 1]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    _put(f"{base}/0.parquet", sink.getvalue())
    plan = _plan(f"{base}/out", shard)
    (outcome,) = _score(_job(plan, url))
    assert outcome.status == "done"
    unmatched = "rows without a sample: 1, samples without a row, added at its end: 1"
    assert outcome.message == f"{base}/0.parquet: {unmatched}"
    rows = _rows(f"{base}/out")
    assert list(rows)[:3] == ["key", "url", "width"]
    assert rows["key"] == ["b", "gone", "a", "z"]
    assert rows["url"] == ["http://b", None, "http://a", None]
    assert [error and error.partition(":")[0] for error in rows["error"]] == ["NOT_AN_IMAGE", "NO_SAMPLE", None, None]
    assert rows["demo_score"][2:] == [pytest.approx(fake_score(image)) for image in (b"one", b"three")]
    part = read_part(f"{base}/out/0.parquet", plan.run_id)
    assert part is not None
    assert (part.rows, part.failures) == (4, {"NOT_AN_IMAGE": 1})
    again = read_metadata(locate(f"{base}/out/0.parquet")[0].open_input_file(locate(f"{base}/out/0.parquet")[1]))
    joined_again, _ = joined_table(again, pa.table({"key": ["a"], "demo_score": [0.5], "error": [""]}), "0.parquet")
    assert joined_again.column_names == ["key", "url", "width", "demo_score", "error"]


def test_what_workers_are_sent_can_be_pickled_after_it_was_used(tmp_path, url):
    shard = _put(str(tmp_path / "s.tar"), _tar({"a.jpg": b"one"}))
    job = _job(_plan(tmp_path / "out", shard), url)
    assert job.plan.parts_there() == {}
    assert [outcome.status for outcome in _score(pickle.loads(pickle.dumps(job)))] == ["done"]
    assert job.plan.parts_there() == {0: "s.parquet"}


def test_unit_that_is_there_is_not_scored_again(photos, tmp_path, url, model):
    job = _job(_plan(tmp_path / "out", photos), url)
    first = _score(job)
    count = len(model.seen)
    assert [outcome.part for outcome in _score(job)] == [outcome.part for outcome in first]
    assert len(model.seen) == count


def test_damaged_file_is_written_anew(photos, tmp_path, url):
    job = _job(_plan(tmp_path / "out", photos), url)
    _score(job)
    path = tmp_path / "out" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert read_part(str(path), job.plan.run_id) is None
    _score(job)
    assert len(_rows(tmp_path / "out")["image_path"]) == 10


def test_another_version_ends_a_unit_unless_allowed(photos, tmp_path, url):
    plan = _plan(tmp_path / "out", photos)
    (outcome,) = _score(_job(plan, url, version="demo-0"), 0)
    assert outcome.status == "failed"
    assert "changed from demo-0 to" in outcome.message
    assert _score(_job(plan, url, version="demo-0", changes=True), 0)[0].status == "done"


def test_server_that_goes_away_in_a_unit_is_replaced(photos, tmp_path, model, url):
    model.dead_after = 5
    other = FakeModel()
    with serve_grpc(other) as other_url:
        outcomes = _score(_job(_plan(tmp_path / "out", photos, rows=10), url, other_url))
    assert [outcome.status for outcome in outcomes] == ["done"]
    rows = _rows(tmp_path / "out")
    assert rows["image_path"] == list(map(str, sorted(photos.iterdir())))
    assert rows["error"] == [None] * 10
    assert other.seen


def test_servers_take_turns(photos, tmp_path, model, url):
    other = FakeModel()
    with serve_grpc(other) as other_url:
        _score(_job(_plan(tmp_path / "out", photos, rows=1), url, other_url))
    assert (len(model.seen), len(other.seen)) == (5, 5)


def test_no_server_is_told(photos, tmp_path, refusing_url):
    (outcome,) = _score(_job(_plan(tmp_path / "out", photos), refusing_url, refusing_url), 0)
    assert outcome.status == "unavailable"
    assert sorted(file_names(str(tmp_path / "out"))) == ["_plan.parquet", "_run.json"]


def test_folder_that_cannot_be_written_is_told(photos, tmp_path, url):
    plan = _plan(tmp_path / "out", photos)
    (tmp_path / "out" / "part-00000.parquet").mkdir()
    (outcome,) = _score(_job(plan, url), 0)
    assert outcome.status == "unwritten"
    assert "part-00000.parquet" in outcome.message
    assert not list((tmp_path / "out").glob("*.tmp"))


def _servers(*urls: str, wait_s: float = 0) -> Servers:
    return Servers.of(AsyncClient(",".join(urls), wait_s=wait_s))


def test_servers_must_agree(url, refusing_url):
    other = FakeModel(heads={"demo": demo_parameters(), "more": demo_parameters()})
    with serve_grpc(other) as other_url:
        servers = _servers(url, other_url, refusing_url)
        common = served(servers, ["demo"], False)
        assert (common.version, len(common.silent)) == (VERSION, 1)
        with pytest.raises(VersionChanged, match="different heads"):
            served(servers, None, False)


def test_no_server_at_all_is_raised(refusing_url):
    with pytest.raises(ServerUnavailable):
        served(_servers(refusing_url), None, False)


def test_servers_that_are_all_loading_are_waited_for(model, url, refusing_url):
    model.refuse_next, model.not_ready_next = [UNKNOWN_MODEL] * 2, 2
    common = served(_servers(url, refusing_url, wait_s=60), None, False)
    assert (common.version, len(common.silent)) == (VERSION, 1)


def test_servers_that_stay_loading_are_unavailable(model, url):
    model.refuse_next, model.ready = [UNKNOWN_MODEL] * 1000, False
    with pytest.raises(ServerUnavailable, match="still loading its models"):
        served(_servers(url, wait_s=0.1), None, False)


def test_server_without_the_models_ends_a_job_at_once(model, url, photos, tmp_path):
    model.refuse_next = [UNKNOWN_MODEL] * 1000
    with pytest.raises(NotClipsieve):
        served(_servers(url, wait_s=3600), None, False)
    (outcome,) = _score(_job(_plan(tmp_path / "out", photos, rows=10), url, wait_s=3600))
    assert (outcome.status, "is not a clipsieve server" in outcome.message) == ("failed", True)


def test_unit_goes_to_another_server_while_one_is_loading(model, url, photos, tmp_path):
    model.refuse_next, model.ready = [UNKNOWN_MODEL] * 1000, False
    other = FakeModel()
    with serve_grpc(other) as other_url:
        (outcome,) = _score(_job(_plan(tmp_path / "out", photos, rows=10), url, other_url))
    assert outcome.status == "done"
    assert len(other.seen) == 10


# ---- rounds ----


def _fake_scoring(silent_times: int, status: Status = "unavailable"):
    """Units 0 to 9, of which 3 finds no server, or no room, so many times."""
    left = {3: silent_times}

    def score(units):
        for unit in units:
            left[unit] = left.get(unit, 0) - 1
            yield Outcome(unit, status if left[unit] >= 0 else "done", "gone")

    return score


@pytest.mark.parametrize("status", ["unavailable", "unwritten"])
def test_unit_without_a_server_is_tried_again(status):
    done = [outcome.unit for outcome in job.retried(_fake_scoring(2, status), list(range(10)), workers=2)]
    assert done == [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]


@pytest.mark.parametrize(("status", "error"), [("unavailable", ServerUnavailable), ("unwritten", OSError)])
def test_job_without_a_server_ends(status, error):
    outcomes = job.retried(_fake_scoring(10**6, status), list(range(10)), workers=2)
    with pytest.raises(error, match="gone"):
        list(outcomes)


# ---- the command, without a cluster ----


def test_usage_errors_have_status_2(tmp_path, photos):
    runner = CliRunner()
    assert runner.invoke(app, [str(photos)]).exit_code == 2
    assert runner.invoke(app, [str(tmp_path / "*.gif"), "--out", str(tmp_path / "out")]).exit_code == 2
    assert runner.invoke(app, [str(photos), "--out", "x", "--url", "gopher://a"]).exit_code == 2


def test_missing_ray_is_named(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, [str(photos), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "clipsieve[ray]" in result.stderr


def test_finished_job_needs_neither_ray_nor_a_server(tmp_path, photos, url, monkeypatch, refusing_url):
    monkeypatch.chdir(tmp_path)
    command = [str(photos), "--out", "out", "--url", refusing_url]
    plan = planned(str(tmp_path / "out"), Inputs((str(photos),)), 5000, HEADS)
    _score(_job(plan, url))
    leftover, other = (tmp_path / "out" / name for name in (f".part-00000.parquet.{uuid4().hex}.tmp", ".mine.tmp"))
    leftover.touch()
    other.touch()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "10 rows were there before" in result.stderr
    assert (leftover.exists(), other.exists()) == (False, True)
    assert list(names_in(Inputs(("out/part-00000.parquet",)))) == list(map(str, sorted(photos.iterdir())))


# ---- a cluster of two machines ----

IMAGES, ROWS = 300, 10


@pytest.fixture(scope="module")
def cluster():
    with two_raylets() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """300 pictures, of which one is none."""
    folder = tmp_path_factory.mktemp("many")
    pictures = [jpeg(seed=seed) for seed in range(10)]
    for number in range(IMAGES):
        (folder / f"{number:03}.jpg").write_bytes(pictures[number % 10] if number != 150 else b"no picture")
    return folder


def _start(cluster, server, *arguments: object, folder: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "clipsieve.cli.bulk", "--url", server.grpc_url, "--rows-per-file", str(ROWS)]
    command += ["--address", cluster["address"], "--json-log", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def _end(process: subprocess.Popen) -> tuple[int, list[dict]]:
    """The exit status and the messages of a run, without any of Ray's."""
    try:
        out, err = process.communicate(timeout=5 * PATIENCE_S)
    finally:
        process.kill()
    assert out == ""
    lines = err.splitlines()
    assert all(line.startswith("{") for line in lines), err
    return process.returncode, [json.loads(line) for line in lines]


def _parts(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.glob("part-*.parquet")}


def _wait_for_parts(out: Path, count: int, process: subprocess.Popen) -> None:
    until(lambda: process.poll() is not None or len(_parts(out)) >= count, "the first files")
    assert process.poll() is None, process.communicate()


def _wait_until_at_work(raylet_pid: int, process: subprocess.Popen) -> None:
    until(lambda: process.poll() is not None or _is_at_work(raylet_pid), "work on the second machine")
    assert process.poll() is None, process.communicate()


def _is_at_work(raylet_pid: int) -> bool:
    """Ray names a process after the task it runs."""
    titles = [_title(child) for child in psutil.Process(raylet_pid).children()]
    return any(title.startswith("ray::") and "_score" in title for title in titles)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _scored_by(server) -> int:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.get_inference_statistics("image_score")
        assert answer is not None
        return answer.model_stats[0].inference_count  # images, however many shared a request


def _check_complete(out: Path, named: str) -> None:
    """Check for one row for each input, with the folder as the user named it."""
    rows = _rows(out)
    assert len(rows["image_path"]) == IMAGES
    assert set(rows["image_path"]) == {f"{named}/{number:03}.jpg" for number in range(IMAGES)}
    failed = [path for path, error in zip(rows["image_path"], rows["error"], strict=True) if error]
    assert failed == [f"{named}/150.jpg"]
    assert not [name for name in file_names(str(out)) if name.startswith(".")]


def test_killed_driver_is_started_again_and_does_the_rest(cluster, server, many, tmp_path):
    out = tmp_path / "out"
    process = _start(cluster, server, many, "--out", out)
    _wait_for_parts(out, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not any(map(_is_at_work, cluster["raylet_pids"])), "the end of its workers")
    scored_before = settled(lambda: _scored_by(server))  # the last requests of those
    before = _parts(out)
    assert 3 <= len(before) < IMAGES // ROWS
    status, events = _end(_start(cluster, server, many, "--out", out))
    assert status == 3, events
    _check_complete(out, str(many))
    after = _parts(out)
    assert {name: after[name] for name in before} == before
    kept = len(before) * ROWS
    assert events[-1]["kept"] == kept
    bad = 0 if "part-00015.parquet" in before else 1
    assert _scored_by(server) - scored_before == IMAGES - kept - bad + 1  # and one to learn the version


def test_shards_through_fsspec(cluster, server, tmp_path):
    pictures = {f"{number:03}.jpg": jpeg(seed=number) for number in range(20)}
    data = _tar(pictures)
    for name, content in {"a.tar": data, "b.tar": data, "cut.tar": data[: len(data) // 2]}.items():
        (tmp_path / name).write_bytes(content)
    status, events = _end(_start(cluster, server, f"local://{tmp_path}/*.tar", "--out", f"local://{tmp_path}/out"))
    assert status == 3, events
    assert events[-1]["damaged_shards"] == 1
    assert any("cut.tar" in each["message"] for each in events if each["event"] == "error")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!_]*")) == ["a.parquet", "b.parquet"]
    rows = _rows(tmp_path / "out")
    assert rows["key"] == [name[:3] for name in pictures] * 2
    assert None not in rows["demo_score"]


def test_job_ends_without_a_server_or_with_another_version(cluster, server, photos, tmp_path, url, refusing_url):
    plan = planned(str(tmp_path / "old"), Inputs((str(photos),)), 4, HEADS)
    _score(_job(plan, url), 0)
    old = _start(cluster, server, photos, "--out", tmp_path / "old", "--rows-per-file", 4)
    silent = _start(cluster, server, photos, "--out", tmp_path / "new", "--url", refusing_url, "--wait", 1)
    status, events = _end(old)
    assert (status, events[-1]["event"]) == (1, "error"), events
    assert VERSION in events[-1]["message"]
    assert "--allow-version-change" in events[-1]["message"]
    assert list(_parts(tmp_path / "old")) == ["part-00000.parquet"]
    status, events = _end(silent)
    assert (status, events[-1]["status"]) == (5, 5), events
    assert [each for each in events if "waiting for a server up to 1 s" in each["message"]]


def test_killed_machine_loses_nothing(cluster, server, many, tmp_path):
    """This test is the last: the cluster has one machine after it."""
    out = tmp_path / "out"
    arguments = [many.name, "--out", os.path.relpath(out, many.parent), "--concurrency", 1]
    process = _start(cluster, server, *arguments, folder=many.parent)
    _wait_for_parts(out, 1, process)
    _wait_until_at_work(cluster["raylet_pids"][1], process)
    os.kill(cluster["raylet_pids"][1], signal.SIGKILL)
    assert len(_parts(out)) < IMAGES // ROWS
    status, events = _end(process)
    assert status == 3, events
    assert next(each for each in events if each["event"] == "start")["nodes"] == 2
    _check_complete(out, many.name)
