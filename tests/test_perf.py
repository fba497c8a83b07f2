"""The load test: the real perf_analyzer on the real server."""

from __future__ import annotations

import base64
import struct

import pytest
from pictures import jpeg

from recipes.photos import sample_photos
from serving.perf import PERF_ANALYZER, input_data, link_libraries, main, measure
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


def test_perf_analyzer_measures_the_server(server, tmp_path):
    assert PERF_ANALYZER.is_file(), "make perf installs it"
    (row,) = measure(server.grpc_url, sample_photos(), [4], tmp_path, find_wheel().libraries)
    assert row["concurrency"] == 4
    assert row["images_per_s"] > 0
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]


def test_no_server_is_a_message_not_a_traceback(capsys):
    assert main(["--recipe", "demo", "--url", "127.0.0.1:1", "--concurrency", "1"]) == 1
    assert "perf_analyzer failed at concurrency 1" in capsys.readouterr().err
