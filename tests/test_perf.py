"""The load test: the real perf_analyzer on the real server."""

from __future__ import annotations

import base64
import json
import socket
import struct

import pytest
from pictures import jpeg

from common.photos import sample_photos
from recipes.errors import run_step
from serving.perf import (
    MOST_PICTURES,
    PERF_ANALYZER,
    Windows,
    input_data,
    link_libraries,
    main,
    measure,
    pictures_in,
    print_table,
)
from serving.triton_wheel import ServingError, find_wheel


def test_images_are_length_prefixed_base64(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (element,) = input_data([tmp_path / "a.jpg"])["data"]
    decoded = base64.b64decode(element["image"]["b64"])
    assert struct.unpack("<I", decoded[:4]) == (len(jpeg()),)
    assert decoded[4:] == jpeg()
    assert element["image"]["shape"] == [1]


def test_libraries_get_the_names_the_binary_wants(tmp_path):
    link_libraries(find_wheel().libraries, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"libb64.so.0d", "libcudart.so.12"}
    assert all(path.is_file() for path in tmp_path.iterdir())


def test_missing_libraries_are_named(tmp_path):
    with pytest.raises(ServingError, match=r"no libb64-\*"):
        link_libraries(tmp_path, tmp_path)


def test_pictures_of_a_folder_are_found_below_it(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.JPG", "below/a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"-")
    assert pictures_in(tmp_path) == [tmp_path / "b.JPG", tmp_path / "below" / "a.png"]


def test_of_very_many_pictures_some_are_taken(tmp_path, monkeypatch):
    for number in range(250):
        (tmp_path / f"{number:03d}.jpg").write_bytes(b"-" * 10)
    taken = pictures_in(tmp_path)
    assert len(taken) <= MOST_PICTURES
    assert [path.stem for path in taken[:3]] == ["000", "003", "006"]
    monkeypatch.setattr("serving.perf.MOST_BYTES", 300)
    assert len(pictures_in(tmp_path)) <= 30


def test_a_folder_without_pictures_is_refused(tmp_path):
    for folder, problem in ((tmp_path, "no images in it"), (tmp_path / "none", "no such folder")):
        with pytest.raises(ServingError, match=problem):
            main(["--recipe", "demo", "--images", str(folder)])


def test_what_would_be_measured_with_is_told(capsys):
    assert run_step("serving.perf", lambda: main(["--recipe", "demo", "--check"])) == 0
    conditions = json.loads(capsys.readouterr().out)
    assert conditions["pictures"] == len(sample_photos())
    assert set(conditions["versions"]) == {"nvidia-pytriton", "onnxruntime", "perf_analyzer"}
    assert all(version[0].isdigit() for version in conditions["versions"].values())


def test_a_missing_perf_analyzer_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("serving.perf.PERF_ANALYZER", tmp_path / "perf_analyzer")
    assert run_step("serving.perf", lambda: main(["--recipe", "demo", "--check"])) == 1
    assert "run: make perf" in capsys.readouterr().err


def test_perf_analyzer_measures_the_server(server, tmp_path):
    assert PERF_ANALYZER.is_file(), "make perf installs it"
    (row,) = measure(server.grpc_url, sample_photos(), [4], tmp_path, find_wheel().libraries)
    assert row["concurrency"] == 4
    assert row["images_per_s"] > 0
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]


def test_windows_too_short_for_an_answer_grow(server, tmp_path):
    windows = Windows.of(0.003)
    (row,) = measure(server.grpc_url, sample_photos(), [1], tmp_path, find_wheel().libraries, windows=windows)
    assert row["images_per_s"] > 0


def test_what_fails_is_a_row_when_the_rest_is_wanted(tmp_path, capsys):
    options = {"windows": Windows.of(0.3), "keep_going": True}
    rows = measure("127.0.0.1:1", sample_photos(), [1, 2], tmp_path, find_wheel().libraries, **options)
    assert [row["concurrency"] for row in rows] == [1, 2]
    assert all("perf_analyzer failed at concurrency" in row["error"] for row in rows)
    print_table(rows)
    assert capsys.readouterr().out.count("failed: ") == 2


def test_without_a_server_the_command_that_starts_one_is_named(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run_step("serving.perf", lambda: main(["--recipe", "demo", "--url", url])) == 1
    err = capsys.readouterr().err
    assert f"the server at {url} does not answer" in err
    assert "make serve RECIPE=demo" in err
    assert err.count("\n") == 1
