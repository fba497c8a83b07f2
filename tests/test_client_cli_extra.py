"""`clipsieve arrange` and `clipsieve video`, and files arranged after `clipsieve score`; most with the real server."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import jpeg, noise
from typer.testing import CliRunner

from clipsieve import Client
from clipsieve.cli.main import app
from clipsieve.cli.video import seconds_from_text
from clipsieve.video import frames
from tests.command_line import run_cli
from tests.fakes import REVISION, Failure, demo_parameters, fake_score

OLD_NS = 1_500_000_000_123_456_789
BANDS = json.dumps([[{"value": 0.25, "operating_point": "low"}, {"value": 0.75, "operating_point": "high"}]])


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _mtimes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def _linked(folder: Path) -> dict[str, str]:
    """The links in a folder: `allow/1.jpg` → the file it links to."""
    links = (path for path in folder.rglob("*") if path.is_symlink())
    return {str(path.relative_to(folder)): str(path.resolve()) for path in links}


def _video(path: Path, seeds: list[int], frames_each: int = 10) -> Path:
    """A video of ten frames a second; each picture stays for a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv420p", 4_000_000
        for seed in seeds:
            picture = np.asarray(noise(128, 96, seed=seed))
            for _ in range(frames_each):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed=seed))
        os.utime(folder / f"{seed}.jpg", ns=(OLD_NS, OLD_NS + seed))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    _video(folder / "a.mp4", [0, 1, 2])
    (folder / "inner").mkdir()
    _video(folder / "inner" / "b.mkv", [3, 4])
    (folder / "notes.txt").write_text("no video")
    return folder


def _frame_scores(server, path: Path, every_s: float = 1.0) -> list[tuple[float, float]]:
    """The rows of a table: (time, score) of each frame."""
    sampled = list(frames(path, every_s))
    with Client(server.grpc_url) as client:
        scores = client.score([frame.image for frame in sampled])
    return [(frame.time_s, float(score.scores[0])) for frame, score in zip(sampled, scores, strict=True)]


# Arranging after scoring


def test_score_and_touch_then_undo(server, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"no image")
    os.utime(photos / "bad.jpg", ns=(OLD_NS, OLD_NS))
    before = _mtimes(photos)
    out = tmp_path / "scores.parquet"
    result = run_cli("score", photos, "--out", out, "--touch", "--url", server.grpc_url)
    assert result.exit_code == 3  # the bad one has no score
    assert "touched by probability: 6 arranged, 0 already so, 1 without a score left alone" in result.stderr
    scores = {Path(row["image_path"]).name: row["probability"] for row in pq.read_table(out).to_pylist()}
    after = _mtimes(photos)
    assert after.pop("bad.jpg") == OLD_NS
    del scores["bad.jpg"]
    assert sorted(after, key=lambda name: -after[name]) == sorted(scores, key=lambda name: -scores[name])
    undone = run_cli("arrange", out, "--undo-touch")
    assert (undone.exit_code, undone.stdout) == (0, "")
    assert "old times given back: 6 arranged" in undone.stderr
    assert _mtimes(photos) == before


def test_score_and_link_into_classes(server, photos, tmp_path):
    out, sorted_into = tmp_path / "scores.csv", tmp_path / "sorted"
    result = run_cli("score", photos, "--out", out, "--link", sorted_into, "--url", server.grpc_url)
    assert result.exit_code == 0, result.stderr
    rows = _rows(out.read_text())
    links = _linked(sorted_into)
    assert links == {f"{row['class_name']}/{Path(row['image_path']).name}": row["image_path"] for row in rows}
    assert len(list(photos.iterdir())) == 6


def test_a_finished_run_that_was_killed_before_its_table_was_in_place_is_arranged_too(url, photos, tmp_path):
    out = tmp_path / "scores.parquet"
    assert run_cli("score", photos, "--out", out, "--url", url).exit_code == 0
    partial = tmp_path / "scores.parquet.partial"
    identity = {
        "format": 1, "columns": pq.read_schema(out).names, "inputs": json.dumps([str(photos)]), "pattern": None,
        "column": None, "head": None, "threshold": None, "operating_point": None,
    }  # fmt: skip
    partial.mkdir()
    (partial / "run.json").write_text(json.dumps(identity))
    (partial / "finished.json").write_text(json.dumps({"rows": 6, "failed": 1}))
    result = run_cli("score", photos, "--out", out, "--touch", "--url", url)
    assert result.exit_code == 3
    assert "all 6 rows were there already" in result.stderr
    assert "touched by probability: 6 arranged" in result.stderr
    assert not partial.exists()


def test_decisions_are_folders_and_the_first_score_counts(url, model, photos, tmp_path):
    model.heads = {"demo": demo_parameters(thresholds=BANDS), "taste": {"labels": '["taste"]', "task": "regression"}}
    out, sorted_into = tmp_path / "scores.jsonl", tmp_path / "sorted"
    result = run_cli("score", photos, "--out", out, "--touch", "--link", sorted_into, "--url", url)
    assert result.exit_code == 0, result.stderr
    assert "the files' order is that of demo_score, not of taste_score" in result.stderr
    assert "the links' folders are those of demo_decision" in result.stderr
    for path in photos.iterdir():
        score = fake_score(path.read_bytes())
        band = ["allow", "review", "block"][int(score >= 0.25) + int(score >= 0.75)]
        assert (sorted_into / band / path.name).resolve() == path


def test_a_head_that_decides_nothing_cannot_be_linked_by_and_nothing_is_scored(url, model, photos, tmp_path):
    model.heads = {"taste": {"labels": '["taste"]', "task": "regression"}}
    result = run_cli("score", photos, "--out", tmp_path / "s.csv", "--link", tmp_path / "sorted", "--url", url)
    assert result.exit_code == 2
    assert "nothing decides by taste_score" in result.stderr
    assert (model.seen, sorted(os.listdir(tmp_path))) == ([], ["photos"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{photos}", "--touch"), "needs a table: give --out"),
        (("{photos}", "--link", "{tmp}/sorted"), "needs a table: give --out"),
        (("{tmp}/a.tar", "--touch", "--out", "{tmp}"), "a shard's images are none"),
        (("{photos}", "--out", "{tmp}/s.csv", "--link", "{photos}/sorted"), "the next run would score the links"),
        (("{photos}", "--out", "{tmp}/s.csv", "--link", "{photos}/1.jpg"), "would score the links"),
        (("{photos}", "--out", "{tmp}/s.csv", "--link", "{tmp}/a.tar"), "is not a folder"),
        (("{photos}", "--out", "{tmp}/s.csv", "--link", "{tmp}/no/sorted"), "/no does not exist"),
    ],
)
def test_what_cannot_be_arranged_is_refused_before_any_scoring(url, model, photos, tmp_path, arguments, message):
    (tmp_path / "a.tar").write_bytes(b"")
    given = [argument.format(photos=photos, tmp=tmp_path) for argument in arguments]
    result = run_cli("score", *given, "--url", url)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert (model.seen, sorted(os.listdir(tmp_path))) == ([], ["a.tar", "photos"])


def test_a_table_that_is_there_is_arranged_by_arrange(url, photos, tmp_path):
    out = tmp_path / "scores.csv"
    run_cli("score", photos, "--out", out, "--url", url)
    again = run_cli("score", photos, "--out", out, "--touch", "--url", url)
    assert again.exit_code == 2
    assert f"to arrange the files of this table: clipsieve arrange {out}" in again.stderr
    assert run_cli("arrange", out, "--touch").exit_code == 0
    newest = max(photos.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest == max(photos.iterdir(), key=lambda path: fake_score(path.read_bytes()))
    assert run_cli("arrange", out, "--touch", "--reverse").exit_code == 0
    newest = max(photos.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest == min(photos.iterdir(), key=lambda path: fake_score(path.read_bytes()))
    refused = run_cli("arrange", out, "--link", tmp_path / "sorted", "--reverse")
    assert (refused.exit_code, "is for the order of --touch" in refused.stderr) == (2, True)


# Arranging a table


@pytest.fixture
def wide(tmp_path, photos):
    rows = [
        {"image_path": str(photos / f"{number}.jpg"), "nsfw_score": number / 10, "nsfw_decision": "allow",
         "nsfw_class_name": "safe", "kind_a_score": 1 - number / 10, "kind_b_score": number / 10,
         "kind_class_name": "ab"[number % 2], "error": None, "model_version": "nsfw-0 kind-1"}
        for number in range(4)
    ]  # fmt: skip
    table = tmp_path / "wide.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_the_head_is_chosen(wide, photos, tmp_path):
    assert run_cli("arrange", wide, "--touch", "--head", "kind").exit_code == 0
    times = _mtimes(photos)
    assert times["0.jpg"] > times["1.jpg"] > times["2.jpg"] > times["3.jpg"]
    assert run_cli("arrange", wide, "--link", tmp_path / "kinds", "--head", "kind_b").exit_code == 0
    assert sorted(_linked(tmp_path / "kinds")) == ["a/0.jpg", "a/2.jpg", "b/1.jpg", "b/3.jpg"]
    unknown = run_cli("arrange", wide, "--touch", "--head", "taste")
    assert unknown.exit_code == 2
    assert "no score of head 'taste'; there are: nsfw_score, kind_a_score, kind_b_score" in unknown.stderr


def test_a_dry_run_says_what_it_would_do(wide, photos, tmp_path):
    before = _mtimes(photos)
    result = run_cli("arrange", wide, "--touch", "--link", tmp_path / "sorted", "--dry-run")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["touch"] * 4 + ["link"] * 4
    assert "would be touched by nsfw_score: 4 arranged" in result.stderr
    assert _mtimes(photos) == before
    assert sorted(os.listdir(tmp_path)) == ["photos", "wide.jsonl"]


def test_settings_come_from_the_environment(wide, photos):
    environment = {"CLIPSIEVE_TOUCH": "1", "CLIPSIEVE_HEAD": "kind", "CLIPSIEVE_QUIET": "1"}
    result = CliRunner(env=environment).invoke(app, ["arrange", str(wide)])
    assert result.exit_code == 0
    times = _mtimes(photos)
    assert times["0.jpg"] > times["3.jpg"]
    assert "arranged" not in result.stderr


def test_files_that_are_gone_are_named(wide, photos):
    (photos / "1.jpg").unlink()
    result = run_cli("arrange", wide, "--touch")
    assert result.exit_code == 3
    assert f"not arranged: {photos / '1.jpg'}: No such file or directory" in result.stderr
    assert "3 arranged" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "say what to do with --touch, --link DIR or --undo-touch"),
        (("--touch", "--undo-touch"), 2, "goes alone"),
        (("--undo-touch",), 2, "nothing to undo"),
        (("--link", "{table}"), 2, "is not a folder"),
    ],
)
def test_wrong_options(wide, arguments, status, message):
    result = run_cli("arrange", wide, *(argument.format(table=wide) for argument in arguments))
    assert result.exit_code == status
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,nsfw_score\na,1\n", "has keys of shards, not files"),
        ("image_path,error\na,\n", "no column of scores"),
        ("image_path,nsfw_score\na,much\n", "row 1: nsfw_score is 'much', expected a number"),
        ("image_path,nsfw_score\na\n", "row 2 (line 2) does not have the header's 2 fields"),
        ("image_path,nsfw_score,nsfw_decision\na,1,../up\n", "a folder cannot be named '../up'"),
    ],
)
def test_tables_that_cannot_be_arranged(tmp_path, text, message):
    table = tmp_path / "t.csv"
    table.write_text(text)
    flags = ("--link", tmp_path / "l") if "../up" in text else ("--touch",)
    result = run_cli("arrange", table, *flags)
    assert result.exit_code == (1 if "../up" in text else 2)
    assert message in result.stderr
    assert os.listdir(tmp_path) == ["t.csv"]


# Videos


def test_a_row_for_each_video(server, videos):
    result = run_cli("video", videos, "--url", server.grpc_url)
    assert result.exit_code == 0, result.stderr
    rows = _rows(result.stdout)
    assert [row["video_path"] for row in rows] == [str(videos / "a.mp4"), str(videos / "inner" / "b.mkv")]
    for row in rows:
        scores = _frame_scores(server, Path(row["video_path"]))
        time_s, best = max(scores, key=lambda each: each[1])
        assert float(row["demo_score"]) == pytest.approx(best, abs=1e-5)
        assert float(row["demo_time_s"]) == time_s
        assert row["demo_decision"] == ("block" if best >= 0.5 else "allow")
        assert row["demo_class_name"]
        assert (row["frames"], row["failed_frames"], row["stopped"]) == (str(len(scores)), "0", "False")
        assert float(row["duration_s"]) == pytest.approx(len(scores), abs=0.2)
        assert row["model_version"].startswith("demo-")
        assert row["error"] == ""
    assert "2 videos scored, 0 failed; 5 frames in " in result.stderr


def test_the_mean_of_more_frames(server, videos):
    path = videos / "a.mp4"
    result = run_cli(
        "video", path, "--every", "500ms", "--aggregate", "mean", "--format", "json", "--url", server.grpc_url
    )
    (row,) = json.loads(result.stdout)
    scores = [score for _, score in _frame_scores(server, path, 0.5)]
    assert (row["frames"], len(scores)) == (6, 6)
    assert row["demo_score"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert row["demo_decision"] == ("block" if np.float32(row["demo_score"]) >= 0.5 else "allow")


def test_stopping_early(server, videos):
    scores = _frame_scores(server, videos / "a.mp4", 0.5)
    limit = scores[2][1] - 1e-4
    first = next(place for place, (_, score) in enumerate(scores) if score >= limit)
    result = run_cli(
        "video", videos / "a.mp4", "--every", "0.5", "--stop-at", limit, "--format", "jsonl", "--url", server.grpc_url
    )
    row = json.loads(result.stdout)
    assert (row["stopped"], row["frames"]) == (True, first + 1)
    assert row["demo_time_s"] == scores[first][0]


def test_a_damaged_video_is_a_row_with_what_was_read(server, videos, tmp_path):
    whole = _video(tmp_path / "whole.mkv", [0, 1, 2, 3]).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 3 // 5])
    (tmp_path / "no.mp4").write_bytes(b"no video")
    out = tmp_path / "videos.parquet"
    given = [tmp_path / name for name in ("cut.mkv", "no.mp4", "gone.mp4", "whole.mkv")]
    result = run_cli("video", *given, "--out", out, "--url", server.grpc_url)
    assert result.exit_code == 3, result.stderr
    cut, no, gone, good = pq.read_table(out).to_pylist()
    assert cut["error"].startswith("DECODE_FAILED: ")
    assert 0 < cut["frames"] < 4
    assert 0 <= cut["demo_score"] <= 1
    assert cut["demo_time_s"] is not None
    assert (cut["demo_decision"], cut["demo_class_name"]) == (None, None)
    assert (no["error"].partition(":")[0], no["frames"], no["demo_score"]) == ("NOT_A_VIDEO", 0, None)
    assert (gone["error"].partition(":")[0], gone["duration_s"]) == ("UNREADABLE", None)
    assert (good["error"], good["frames"]) == (None, 4)
    assert "1 videos scored, 3 failed (" in result.stderr


def test_video_tables_are_arranged(server, videos, tmp_path):
    out = tmp_path / "videos.csv"
    assert run_cli("video", videos, "--out", out, "--url", server.grpc_url).exit_code == 0
    result = run_cli("arrange", out, "--link", tmp_path / "sorted")
    assert result.exit_code == 0, result.stderr
    rows = _rows(out.read_text())
    assert _linked(tmp_path / "sorted") == {
        f"{row['demo_decision']}/{Path(row['video_path']).name}": row["video_path"] for row in rows
    }


def test_a_run_over_videos_goes_on(url, model, videos, tmp_path):
    out = tmp_path / "videos.csv"
    model.dead_after = 4  # in the second video
    first = run_cli("video", videos, "--out", out, "--wait", 0, "--url", url)
    assert first.exit_code == 5
    assert "1 rows are kept" in first.stderr
    model.dead_after = None
    seen = len(model.seen)
    second = run_cli("video", videos, "--out", out, "--wait", 0, "--url", url)
    assert second.exit_code == 0, second.stderr
    assert len(model.seen) - seen == 2
    assert len(_rows(out.read_text())) == 2
    assert "1 rows were there before" in second.stderr
    assert sorted(os.listdir(tmp_path)) == ["videos.csv"]
    assert run_cli("video", videos, "--out", out, "--url", url).exit_code == 2


def test_several_heads_and_a_frame_that_fails(url, model, videos):
    model.heads = {"demo": demo_parameters(thresholds=BANDS), "taste": {"labels": '["taste"]', "task": "regression"}}
    model.fail_next = [Failure(grpc.StatusCode.INTERNAL, "it broke")]
    result = run_cli("video", videos / "a.mp4", "--stop-at", 1, "--format", "jsonl", "--concurrency", 1, "--url", url)
    assert result.exit_code == 3
    assert "what stops a video is demo_score" in result.stderr
    row = json.loads(result.stdout)
    assert list(row) == [
        "video_path", "demo_score", "demo_decision", "demo_class_name", "taste_score", "demo_time_s", "taste_time_s",
        "frames", "failed_frames", "duration_s", "stopped", "error", "model_version",
    ]  # fmt: skip
    assert (row["frames"], row["failed_frames"], row["demo_decision"]) == (3, 1, None)
    assert row["error"] == "INTERNAL: the frame at 0.000 s: it broke"
    best = max(fake_score(image) for image in model.seen[1:])
    assert np.float32(row["demo_score"]) == np.float32(row["taste_score"]) == best
    assert row["model_version"] == f"demo-{REVISION:016x} taste-{REVISION:016x}"


def test_a_mean_is_not_decided_about_when_the_server_does_not_say_where(url, videos):
    result = run_cli("video", videos, "--aggregate", "mean", "--url", url)
    assert result.exit_code == 2
    assert "a mean cannot be decided about" in result.stderr
    assert run_cli("video", videos, "--aggregate", "mean", "--threshold", 0.5, "--url", url).exit_code == 0


def test_names_that_are_odd(url, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.mp4", "byte\udcff.mp4", "new\nline.MP4"]
    for name in names:
        shutil.copyfile(videos / "a.mp4", name)
    result = run_cli("video", *names, "--url", url)
    assert [row["video_path"] for row in _rows(result.stdout)] == ["./=1+1.mp4", r"byte\udcff.mp4", "new\nline.MP4"]
    assert {row["error"] for row in _rows(result.stdout)} == {""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{videos}", "--every", "0s"), "no duration above 0"),
        (("{videos}", "--every", "soon"), "'soon' is no duration"),
        (("{videos}", "--stop-at", "0.9", "--aggregate", "mean"), "the mean of a part is not the video's"),
        (("{videos}", "--stop-at", "nan"), "not a finite number"),
        (("{videos}", "--out", "{videos}/out.txt"), "unknown suffix '.txt'"),
        (("{videos}", "--head", "other"), "no head 'other'"),
        (("{empty}",), "no file with the suffix of a video"),
    ],
)
def test_wrong_options_for_videos(url, model, videos, tmp_path, arguments, message):
    result = run_cli("video", *(each.format(videos=videos, empty=tmp_path) for each in arguments), "--url", url)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert model.seen == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("500ms", 0.5), ("2", 2), (".5s", 0.5), ("1m", 60), ("1.5 S", None)]
)
def test_durations(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match="no duration"):
            seconds_from_text(text)
    else:
        assert seconds_from_text(text) == seconds


def test_without_pyav_the_extra_is_named(videos):
    missing = "for name in ('av', 'ray', 'starlette', 'uvicorn'): sys.modules[name] = None"
    code = f"import sys\n{missing}\nfrom clipsieve.cli.main import app\napp()"
    command = [sys.executable, "-c", code, "video", str(videos)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "clipsieve: video files need PyAV: pip install 'clipsieve[video]'\n"


def test_commands_that_need_no_extra_start_without_it():
    missing = "for name in ('av', 'ray', 'starlette', 'uvicorn'): sys.modules[name] = None"
    code = f"import sys\n{missing}\nfrom clipsieve.cli.main import app\napp()"
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    listed = re.findall(r"^  (\S+)  ", result.stdout.partition("Commands:")[2], re.MULTILINE)
    made = ["score", "video", "embed", "score-embeddings"]
    assert listed[:12] == [*made, "report", "review", "filter", "decide", "arrange", "heads", "health", "bench"]


def test_report_and_filter_take_the_table(server, photos, tmp_path):
    out = tmp_path / "scores.csv"
    run_cli("score", photos, "--out", out, "--url", server.grpc_url)
    report = run_cli("report", out, "-o", tmp_path / "report.html")
    assert report.exit_code == 0, report.stderr
    kept = run_cli("filter", out, "--at-least", 0)
    assert kept.stdout.splitlines() == [row["image_path"] for row in _rows(out.read_text())]
