"""The embedded server as a process: how it ends with what started it, and starts where things are odd or scarce."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from waiting import PATIENCE_S, until

from clipsieve import Client
from common.paths import ROOT
from serving import tritonserver
from serving.embedded import main, refuse_unbuilt
from serving.tritonserver import folder_without_spaces, free_ports, shared_bytes_of_process


@contextmanager
def _serving(repository: Path, log: Path, **environment: str) -> Iterator[tuple[psutil.Process, dict]]:
    """`python -m serving.embedded` with the demo's repository, once it serves, and its addresses."""
    ports = zip(("--http-port", "--grpc-port", "--metrics-port"), free_ports(0, 0, 0), strict=True)
    options = [str(word) for pair in ports for word in pair]
    process = psutil.Popen(
        [
            sys.executable, "-m", "serving.embedded", "--recipe", "demo", "--repository", str(repository),
            "--log", str(log), "--json", *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1].decode()
        yield process, json.loads(line)
    finally:
        for each in [*process.children(recursive=True), process] if process.is_running() else []:
            each.kill()
        process.communicate()


def _server_of(process: psutil.Process) -> psutil.Process:
    return next(child for child in process.children(recursive=True) if "tritonserver" in child.name())


def test_the_end_of_the_terminal_stops_the_server_in_order(repository, tmp_path):
    with _serving(repository, tmp_path / "log") as (process, _):
        server = _server_of(process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 0
        until(lambda: not server.is_running(), "the end of tritonserver")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux's setpriv")
def test_a_killed_supervisor_leaves_no_server_behind(repository, tmp_path):
    with _serving(repository, tmp_path / "log") as (process, _):
        server = _server_of(process)
        others = server.children(recursive=True)
        process.kill()
        until(lambda: not any(each.is_running() for each in [server, *others]), "the end of tritonserver")


def test_a_folder_for_temporary_files_with_a_space_is_not_used(repository, tmp_path):
    folder = tmp_path / "my files"
    folder.mkdir()
    with (
        _serving(repository, tmp_path / "log", TMPDIR=str(folder)) as (_, addresses),
        Client(addresses["grpc"]) as client,
    ):
        assert client.health().ok


def test_a_folder_for_temporary_files_is_named_when_there_is_none(tmp_path, monkeypatch):
    folder = tmp_path / "my files"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folder_without_spaces() == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(tritonserver.ServingError, match=r"no folder .* without a space in its path: .*; set TMPDIR"):
        folder_without_spaces()


@pytest.mark.parametrize(
    ("free", "expected"), [(64 * 2**20, 4 * 2**20), (2**34, 16 * 2**20), (3 * 2**20, 2**20), (60 * 2**20, 2 * 2**20)]
)
def test_shared_memory_of_a_process_fits_what_there_is(monkeypatch, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert shared_bytes_of_process() == expected


def test_where_there_is_no_shared_memory_the_server_says_so(tmp_path):
    assert shared_bytes_of_process(tmp_path / "none") == tritonserver.MOST_SHARED_BYTES


def test_a_repository_that_is_not_built_names_the_command(repository, tmp_path):
    refuse_unbuilt(repository, "demo")
    checked_in = Path(shutil.copytree(ROOT / "model_repository", tmp_path / "models"))
    for file in checked_in.glob("*/1/*.onnx"):  # of a checkout that was built
        file.unlink()
    with pytest.raises(
        tritonserver.ServingError, match=r"aesthetic_head, clip_encoder, nsfw_head are not built"
    ) as refused:
        refuse_unbuilt(checked_in, "nsfw-vit-l-14")
    assert str(refused.value).endswith("build with: make engines RECIPE=nsfw-vit-l-14")
    with pytest.raises(tritonserver.ServingError, match=r"no model repository; build it with: make engines RECIPE=x$"):
        refuse_unbuilt(tmp_path / "none", "x")


def test_a_port_that_is_given_twice_is_named():
    with pytest.raises(tritonserver.ServingError, match="port 9000 is given twice"):
        main(["--recipe", "demo", "--http-port", "9000", "--grpc-port", "9000"])
