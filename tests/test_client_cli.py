"""The command line: what it prints where, and its exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.main
from waiting import PATIENCE_S, until

from clipsieve.cli.main import app
from clipsieve.results import Threshold
from clipsieve.run_record import ScoreFacts, read_record
from tests.command_line import run_cli
from tests.fakes import EMBED_DIM, REVISION, SERVE, demo_parameters, fake_embedding, fake_score

THRESHOLDS = json.dumps(
    [[{"value": 0.25, "operating_point": "high recall"}, {"value": 0.75, "operating_point": "low fpr"}]]
)
VERSION = f"demo-{REVISION:016x}"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(f"image {number}".encode())
    return folder


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_goes_to_stdout_and_the_summary_to_stderr(url, photos):
    result = run_cli("score", photos, "--url", url)
    assert result.exit_code == 0
    assert [row["image_path"] for row in _rows(result.stdout)] == [f"{photos}/{number}.jpg" for number in range(5)]
    for number, row in enumerate(_rows(result.stdout)):
        score = fake_score(f"image {number}".encode())
        assert np.float32(row["probability"]) == score
        assert row["prediction"] == str(int(score >= 0.25))
        assert row["class_name"] == ("ring" if score >= 0.25 else "disc")
        assert (row["error"], row["model_version"]) == ("", VERSION)
    assert result.stderr.startswith("5 scored, 0 failed in ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_protocols_agree(model, photos, protocol):
    with SERVE[protocol](model) as url:
        result = run_cli("score", photos, "--url", url, "--protocol", protocol)
    assert [np.float32(row["probability"]) for row in _rows(result.stdout)] == [
        fake_score(f"image {number}".encode()) for number in range(5)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_file_formats_hold_the_same_rows(url, photos, tmp_path, suffix):
    (photos / "2.jpg").write_bytes(b"BAD")
    out = tmp_path / f"out{suffix}"
    result = run_cli("score", photos, "--url", url, "--out", out)
    assert (result.exit_code, result.stdout) == (3, "")
    readers = {
        ".csv": lambda: _rows(out.read_text()),
        ".json": lambda: json.loads(out.read_text()),
        ".jsonl": lambda: [json.loads(line) for line in out.read_text().splitlines()],
        ".parquet": lambda: pq.read_table(out).to_pylist(),
    }
    rows = readers[suffix]()
    assert [row["image_path"] for row in rows] == [f"{photos}/{number}.jpg" for number in range(5)]
    assert rows[2]["error"] == "NOT_AN_IMAGE: not a format, or one not allowed; a, b"
    assert not rows[2]["probability"]
    assert not rows[2]["model_version"]
    assert np.float32(rows[1]["probability"]) == fake_score(b"image 1")
    assert sorted(os.listdir(tmp_path)) == [out.name, f"{out.name}.run.json", "photos"]


def test_failed_images_are_rows_and_counted(url, photos):
    (photos / "1.jpg").write_bytes(b"BAD")
    (photos / "3.jpg").write_bytes(b"")
    result = run_cli("score", photos, photos / "gone.png", "--url", url)
    assert result.exit_code == 3
    errors = [row["error"].partition(":")[0] for row in _rows(result.stdout)]
    assert errors == ["", "NOT_AN_IMAGE", "", "EMPTY", "", "UNREADABLE"]
    assert "3 scored, 3 failed (NOT_AN_IMAGE 1, EMPTY 1, UNREADABLE 1)" in result.stderr


@pytest.mark.parametrize(("threshold", "prediction"), [("0", "1"), ("1", "0")])
def test_threshold_decides(url, photos, threshold, prediction):
    result = run_cli("score", photos, "--url", url, "--threshold", threshold)
    assert {row["prediction"] for row in _rows(result.stdout)} == {prediction}


def test_list_on_stdin(url, photos):
    listed = f"{photos}/3.jpg\0{photos}/1.jpg\0".encode()
    result = run_cli("score", "-", "--url", url, input=listed)
    assert [row["image_path"] for row in _rows(result.stdout)] == [f"{photos}/3.jpg", f"{photos}/1.jpg"]


def test_odd_names_survive(url, tmp_path):
    names = ['a "b", c\nd\r.jpg', "=1+1.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        (tmp_path / name).write_bytes(b"image")
    result = run_cli("score", *[f"{tmp_path}/{name}" for name in names], "--url", url)
    assert result.exit_code == 0
    rows = _rows(result.stdout_bytes.decode())
    assert [row["image_path"] for row in rows] == [f"{tmp_path}/{name}" for name in [*names[:2], "\\udcff.jpg"]]


def test_pattern(url, photos):
    (photos / "x.tif").write_bytes(b"image")
    result = run_cli("score", photos, "--url", url, "--pattern", "*.tif")
    assert [row["image_path"] for row in _rows(result.stdout)] == [f"{photos}/x.tif"]


def test_settings_come_from_the_environment(url, photos):
    environment = {"CLIPSIEVE_URL": url, "CLIPSIEVE_THRESHOLD": "1", "CLIPSIEVE_QUIET": "1"}
    result = run_cli("score", photos, env=environment)
    assert {row["prediction"] for row in _rows(result.stdout)} == {"0"}
    assert result.stderr == ""


def test_every_option_has_help_and_a_variable():
    for name, command in typer.main.get_group(app).commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"
            assert parameter.param_type_name == "argument" or str(parameter.envvar).startswith("CLIPSIEVE_"), (
                parameter.name
            )


def test_notice_is_printed_once_also_when_quiet(url, model, photos):
    model.heads = {"demo": demo_parameters(notice="Only a demo.")}
    result = run_cli("score", photos, "--url", url, "--quiet")
    assert result.stderr == "notice: Only a demo.\n"


def test_usage_errors_come_before_any_request(url, model, photos, tmp_path):
    (tmp_path / "there.csv").touch()
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ((photos, "--threshold", "1.5"), "--threshold"),
        ((photos, "--threshold", "nan"), "--threshold"),
        ((photos, "--timeout", "nan"), "--timeout"),
        ((photos, "--concurrency", "0"), "--concurrency"),
        ((photos, "--protocol", "ftp"), "ftp"),
        ((photos, "--protocol", "grpc", "--url", "http://gpu:1"), "is for http"),
        ((photos, "--sort", "beauty"), "cannot sort by 'beauty'"),
        ((photos, "--header", "x"), "NAME:VALUE"),
        ((photos, "--out", tmp_path / "a.xlsx"), ".xlsx"),
        ((photos, "--out", tmp_path / "no" / "a.csv"), "does not exist"),
        ((photos, "--out", tmp_path / "there.csv"), "--overwrite"),
        ((tmp_path / "empty",), "nothing to do"),
        ((photos, "--pattern", "*.xyz"), "*.xyz"),
        ((photos / "*.xyz",), "no file matches"),
        ((tmp_path / "no.csv",), "cannot be read"),
        ((photos, "a.tar"), "two runs"),
        ((), "PATH"),
    ]:
        result = run_cli("score", "--url", url, *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr, arguments
        assert result.stdout == ""
    assert model.seen == []


def test_overwrite_replaces(url, photos, tmp_path):
    out = tmp_path / "there.csv"
    out.write_text("image_path,probability,prediction,class_name,error,model_version\n")
    assert run_cli("score", photos, "--url", url, "--out", out, "--overwrite").exit_code == 0
    assert len(_rows(out.read_text())) == 5


def test_several_heads_make_a_wide_table(url, model, photos):
    model.heads = {
        "demo": demo_parameters(thresholds=THRESHOLDS),
        "taste": {"labels": '["taste"]', "task": "regression"},
    }
    result = run_cli("score", photos, "--url", url)
    assert result.exit_code == 0
    rows = _rows(result.stdout)
    assert list(rows[0]) == [
        "image_path", "demo_score", "demo_decision", "demo_class_name", "taste_score", "error", "model_version",
    ]  # fmt: skip
    for number, row in enumerate(rows):
        score = fake_score(f"image {number}".encode())
        assert np.float32(row["demo_score"]) == np.float32(row["taste_score"]) == score
        assert row["demo_decision"] == ["allow", "review", "block"][int(score >= 0.25) + int(score >= 0.75)]
    assert rows[0]["model_version"] == f"{VERSION} taste-{REVISION:016x}"


def test_heads_are_named_one_by_one(url, model, photos):
    model.heads = {"demo": demo_parameters(), "other": demo_parameters(), "third": demo_parameters()}
    rows = _rows(run_cli("score", photos, "--url", url, "--head", "third", "--head", "demo").stdout)
    assert [name for name in rows[0] if name.endswith("_score")] == ["third_score", "demo_score"]
    rows = _rows(run_cli("score", photos, "--url", url, "--head", "other").stdout)
    assert {row["model_version"] for row in rows} == {f"other-{REVISION:016x}"}
    assert "probability" in rows[0]
    result = run_cli("score", photos, "--url", url, "--head", "fourth")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no head 'fourth'; this server has: demo, other, third" in result.stderr


def test_operating_point_decides(url, model, photos):
    model.heads = {"demo": demo_parameters(thresholds=THRESHOLDS)}
    for name, threshold in [("high recall", 0.25), ("low fpr", 0.75)]:
        rows = _rows(run_cli("score", photos, "--url", url, "--operating-point", name).stdout)
        assert [row["prediction"] for row in rows] == [str(int(float(row["probability"]) >= threshold)) for row in rows]
    result = run_cli("score", photos, "--url", url, "--operating-point", "f1")
    assert result.exit_code == 2
    assert "no operating point 'f1' for 'ring'; it has: high recall, low fpr" in result.stderr


def test_operating_point_of_a_server_that_does_not_say(url, photos):
    result = run_cli("score", photos, "--url", url, "--operating-point", "f1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "does not say which operating points head 'demo' has" in result.stderr


def test_threshold_of_several_heads_is_refused(url, model, photos):
    model.heads = {"demo": demo_parameters(), "other": demo_parameters()}
    result = run_cli("score", photos, "--url", url, "--threshold", "0.5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a threshold is for one binary head, these are demo (binary), other (binary)" in result.stderr


def test_top_and_sort(url, photos, tmp_path):
    (photos / "2.jpg").write_bytes(b"BAD")
    by_score = sorted((fake_score(f"image {number}".encode()), number) for number in (0, 1, 3, 4))[::-1]
    expected = [f"{photos}/{number}.jpg" for _, number in by_score]
    rows = _rows(run_cli("score", photos, "--url", url, "--sort", "score").stdout)
    assert [row["image_path"] for row in rows] == [*expected, f"{photos}/2.jpg"]
    rows = _rows(run_cli("score", photos, "--url", url, "--top", "2").stdout)
    assert [row["image_path"] for row in rows] == expected[:2]
    run_cli(
        "score", photos / "4.jpg", photos / "1.jpg", "--url", url, "--sort", "path", "--out", tmp_path / "a.parquet"
    )
    assert pq.read_table(tmp_path / "a.parquet")["image_path"].to_pylist() == [f"{photos}/{n}.jpg" for n in (1, 4)]


def test_formats_on_stdout(url, photos):
    lines = run_cli("score", photos, "--url", url, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["image_path"] for line in lines] == [f"{photos}/{number}.jpg" for number in range(5)]
    assert json.loads(run_cli("score", photos, "--url", url, "--format", "json").stdout)[4]["model_version"] == VERSION
    table = run_cli("score", photos, "--url", url, "--format", "table", "--top", "1").stdout
    assert "class_name" in table
    assert "error" not in table
    assert table.splitlines()[-1] == f"model_version: {VERSION}"


def test_a_run_keeps_beside_its_table_what_columns_cannot_say(url, model, photos, tmp_path):
    """The thresholds that decided, the classes' names and what was passed over; decisions by others are others."""
    model.heads = {"demo": demo_parameters(thresholds=THRESHOLDS)}
    (photos / "a.heic").write_bytes(b"x")
    out = tmp_path / "t.csv"
    thresholds = (Threshold(0.25, "high recall"), Threshold(0.75, "low fpr"))
    for options, expected in [
        ((), thresholds),
        (("--operating-point", "low fpr"), thresholds[1:]),
        (("--threshold", "0.4"), (Threshold(0.4, ""),)),
    ]:
        assert run_cli("score", photos, "--url", url, "--out", out, "--overwrite", *options).exit_code == 0
        record = read_record(out)
        assert record.scores == {"probability": ScoreFacts(("disc", "ring"), expected)}
        assert record.passed_over == {".heic": 1}
    assert run_cli("decide", out, "--threshold", "0.3", "--out", tmp_path / "u.csv").exit_code == 0
    decided = read_record(tmp_path / "u.csv")
    assert decided.scores["probability"] == ScoreFacts(("disc", "ring"), (Threshold(0.3, ""),))
    assert decided.passed_over == {".heic": 1}


def test_reverse_begins_with_the_lowest_score(url, photos, tmp_path):
    """A row without a score is last in both orders."""
    (photos / "2.jpg").write_bytes(b"BAD")
    scores = {row["image_path"]: row["probability"] for row in _rows(run_cli("score", photos, "--url", url).stdout)}
    scored = sorted((path for path in scores if scores[path]), key=lambda path: float(scores[path]))
    rows = _rows(run_cli("score", photos, "--url", url, "--sort", "score", "--reverse").stdout)
    assert [row["image_path"] for row in rows] == [*scored, f"{photos}/2.jpg"]
    rows = _rows(run_cli("score", photos, "--url", url, "--top", "2", "--reverse").stdout)
    assert [row["image_path"] for row in rows] == scored[:2]
    run_cli("score", photos, "--url", url, "--sort", "path", "--reverse", "--out", tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["image_path"].to_pylist() == sorted(scores, reverse=True)


def test_json_log(url, model, photos):
    model.heads = {"demo": demo_parameters(notice="A demo.")}
    (photos / "2.jpg").write_bytes(b"BAD")
    result = run_cli("score", photos, "--url", url, "--json-log")
    notice, end = (json.loads(line) for line in result.stderr.splitlines())
    assert (notice["event"], notice["message"]) == ("notice", "notice: A demo.")
    assert (end["event"], end["done"], end["failed"], end["failures"]) == ("end", 5, 1, {"NOT_AN_IMAGE": 1})


def test_table_of_scores_is_a_list_of_images(url, photos, tmp_path):
    for suffix in (".csv", ".parquet", ".jsonl"):
        out, again = tmp_path / f"out{suffix}", tmp_path / f"again{suffix}"
        run_cli("score", photos, "--url", url, "--out", out)
        assert run_cli("score", out, "--url", url, "--out", again).exit_code == 0
        assert again.read_bytes() == out.read_bytes()


def test_bench(url, model, photos):
    result = run_cli("bench", photos, "--url", url, "--count", "40", "--concurrency", "2,8", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert [(each["concurrency"], each["images"], each["failed"]) for each in figures] == [(2, 40, 0), (8, 40, 0)]
    assert all(0 < each["p50_ms"] <= each["p99_ms"] for each in figures)
    assert model.most_at_once <= 8
    assert run_cli("bench", photos, "--url", url, "--concurrency", "2,x").exit_code == 2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server(photos, tmp_path, protocol, refusing_url):
    address = refusing_url
    result = run_cli(
        *("score", photos, "--url", address, "--protocol", protocol, "--out", tmp_path / "a.csv", "--wait", "0")
    )
    assert (result.exit_code, result.stdout) == (5, "")
    assert f"clipsieve: server unavailable: no answer from {address}" in result.stderr
    assert not (tmp_path / "a.csv").exists()


def test_server_that_goes_away_leaves_rows_to_go_on_with(url, model, tmp_path):
    files = [tmp_path / f"{number:03}.jpg" for number in range(60)]
    for file in files:
        file.write_bytes(file.name.encode())
    model.dead_after = 20
    arguments = ["score", *files, "--url", url, "--out", tmp_path / "out.csv", "--concurrency", "4", "--wait", "0"]
    result = run_cli(*arguments)
    assert result.exit_code == 5
    assert f"server unavailable: {url} is stopping: Server is stopping" in result.stderr
    assert "rows are kept in" in result.stderr
    assert not (tmp_path / "out.csv").exists()
    model.dead_after = None
    model.seen.clear()
    result = run_cli(*arguments)
    assert result.exit_code == 0
    assert "going on after" in result.stderr
    assert 40 <= len(model.seen) < 60
    assert [row["image_path"] for row in _rows((tmp_path / "out.csv").read_text())] == [str(file) for file in files]


def test_dead_stub_fails_each_image_or_is_waited_for(url, model, photos, tmp_path):
    model.stub_dead = True
    result = run_cli("score", photos, "--url", url, "--wait", "0")
    assert result.exit_code == 3
    assert "0 scored, 5 failed (INTERNAL 5)" in result.stderr
    result = run_cli("score", photos, "--url", url, "--wait", "0.6", "--out", tmp_path / "out.csv")
    assert result.exit_code == 5
    assert "a process of the server has died" in result.stderr


def test_interrupt_keeps_the_rows_so_far(url, model, tmp_path):
    files = [tmp_path / f"{number:03}.jpg" for number in range(200)]
    for file in files:
        file.write_bytes(b"image")
    model.pause_after = 20
    arguments = ["score", *map(str, files), "--url", url, "--out", str(tmp_path / "out.csv"), "--concurrency", "2"]
    command = [sys.executable, "-m", "clipsieve.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(model.seen) > 20)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode not in (0, 3)
    assert f"rows are kept in {tmp_path / 'out.csv.partial'}" in stderr
    (part,) = (tmp_path / "out.csv.partial").glob("rows-*.parquet")
    assert 1 <= len(pq.read_table(part)) < 200
    assert not (tmp_path / "out.csv").exists()


def test_reader_that_stops_early_is_no_traceback(url, photos):
    command = [sys.executable, "-m", "clipsieve.cli", "score", *[str(photos)] * 2000, "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("image_path")
        process.stdout.close()
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_health(url, model):
    result = run_cli("health", "--url", url)
    assert result.exit_code == 0
    assert result.stdout.startswith("ok: scored an image with demo in ")


def test_health_of_a_dead_stub(url, model):
    model.stub_dead = True
    result = run_cli("health", "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "failing: the server says that it is ready, but cannot score an image: INTERNAL" in result.stderr
    assert run_cli("health", "--url", url, "--shallow").exit_code == 0


def test_health_without_a_server(refusing_url):
    result = run_cli("health", "--url", refusing_url)
    assert result.exit_code == 5
    assert "unavailable" in result.stderr


def test_heads_as_json(url, model):
    model.heads = {"demo": demo_parameters(notice="A demo.")}
    (head,) = json.loads(run_cli("heads", "--url", url, "--json").stdout)
    assert head["thresholds"] is None
    assert {key: head[key] for key in ("name", "task", "labels", "class_names", "notice")} == {
        "name": "demo", "task": "binary", "labels": ["ring"], "class_names": ["disc", "ring"], "notice": "A demo.",
    }  # fmt: skip


def test_heads_as_a_table(url):
    result = run_cli("heads", "--url", url)
    assert result.exit_code == 0
    assert "disc, ring" in result.stdout


def test_embed_to_npy(url, photos, tmp_path):
    (photos / "1.jpg").write_bytes(b"BAD")
    result = run_cli("embed", photos, "--url", url, "--out", tmp_path / "e.npy")
    assert result.exit_code == 3
    embeddings = np.load(tmp_path / "e.npy")
    assert embeddings.shape == (5, EMBED_DIM)
    np.testing.assert_array_equal(embeddings[0], fake_embedding(b"image 0"))
    assert np.isnan(embeddings[1]).all()
    assert "4 embedded, 1 failed (NOT_AN_IMAGE 1)" in result.stderr


def test_embed_to_parquet(url, photos, tmp_path):
    assert run_cli("embed", photos, "--url", url, "--out", tmp_path / "e.parquet").exit_code == 0
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    np.testing.assert_array_equal(rows[4]["embedding"], fake_embedding(b"image 4"))


def test_version():
    result = run_cli("--version")
    assert (result.exit_code, result.stdout.count(".")) == (0, 2)


def test_a_run_lets_other_clients_pass_unless_it_is_told(photos, url, model):
    run_cli("score", photos, "--url", url)
    assert model.priorities == {2}
    run_cli("score", photos, "--url", url, "--priority", "interactive")
    assert model.priorities == {1, 2}
