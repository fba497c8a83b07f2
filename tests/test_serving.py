"""The embedded server: it starts, it stops in order, and it names the problem when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar, NoReturn

import psutil
import pytest
from pictures import jpeg
from typer.testing import CliRunner
from waiting import PATIENCE_S, until

from clipsieve import Client, InferenceFailed
from clipsieve.cli.main import app
from common.paths import ROOT
from recipes.errors import run_step
from serving.embedded import EmbeddedServer, ServerSettings, main, refuse_plans
from serving.triton_wheel import ServingError, find_wheel
from serving.tritonserver_options import tracing_options


def start(repository: Path, tmp_path: Path) -> EmbeddedServer:
    return EmbeddedServer(repository, ServerSettings.on_free_ports(tmp_path / "log", exit_timeout_s=4))


def stubs(server: EmbeddedServer) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if "triton_python_backend_stub" in child.name() or "stub" in child.name()]


def test_it_listens_on_loopback_only(server):
    connections = psutil.Process(server.pid).net_connections("tcp")
    listening = {connection.laddr.ip for connection in connections if connection.status == "LISTEN"}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_a_repository_path_with_a_space_is_served(repository, tmp_path):
    spaced = Path(shutil.copytree(repository, tmp_path / "my models" / "repository"))
    with start(spaced, tmp_path) as server, Client(server.grpc_url) as client:
        assert client.score([jpeg()])[0].ok


def test_a_killed_stub_is_noticed_by_health(repository, tmp_path):
    """Triton's own readiness stays green; a real inference does not."""
    with start(repository, tmp_path) as server, Client(server.grpc_url) as client:
        assert client.health().ok
        assert len(stubs(server)) == 6  # two preprocess, two encoders, head, proof
        for stub in stubs(server):
            stub.kill()
        until(lambda: client.health().status == "failing")
        assert client.health(deep=False).ok
        command = [str(Path(sys.executable).parent / "clipsieve"), "health", "--url", server.grpc_url]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 1
        assert "cannot score an image" in finished.stderr


def health(*arguments: str) -> tuple[int, str]:
    """Exit status and output of `clipsieve health`."""
    result = CliRunner().invoke(app, ["health", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(("flag", "expected"), [("--deep", "scored an image"), ("--no-deep", "no image was scored")])
def test_health_says_what_it_did(server, flag, expected):
    status, output = health("--url", server.grpc_url, flag)
    assert (status, expected in output) == (0, True), output


def test_health_is_deep_or_not(server):
    status, output = health("--deep", "--shallow", "--url", server.grpc_url)
    assert status == 2
    assert "exclude each other" in output


def test_a_busy_server_is_healthy(model, url, monkeypatch):
    async def full(*arguments: object) -> NoReturn:
        raise InferenceFailed("SERVER_BUSY", "Exceeds maximum queue size")

    monkeypatch.setattr("clipsieve.grpc_transport.GrpcTransport.infer", full)
    status, output = health("--url", url)
    assert (status, output.startswith("busy: ")) == (0, True), output


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps the requests it gets."""

    received: ClassVar[list[tuple[str, dict]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_traces_reach_a_collector(repository, tmp_path):
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        with EmbeddedServer(
            repository,
            ServerSettings.on_free_ports(
                tmp_path / "log",
                tracing_url=f"http://127.0.0.1:{collector.server_port}/v1/traces",
            ),
        ):
            pass  # ready means that a picture was scored; what is left is sent at the end
        collector.shutdown()
    assert {path for path, _ in Collector.received} == {"/v1/traces"}
    scopes = [scope for _, body in Collector.received for part in body["resourceSpans"] for scope in part["scopeSpans"]]
    names = {span["name"] for scope in scopes for span in scope["spans"]}
    assert {"image_score", "preprocess", "clip_encoder", "demo_head"} <= names


@pytest.mark.parametrize("url", ["collector:4318", "http://", "ftp://collector/v1/traces", "http://collector"])
def test_traces_go_to_an_http_address(url):
    with pytest.raises(ServingError, match="4318/v1/traces"):
        tracing_options(url)


def test_stopping_leaves_no_process_and_no_file(repository, tmp_path):
    with start(repository, tmp_path) as server:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        folder = server._folder
    assert folder is not None
    assert not folder.exists()
    assert not any(process.is_running() and process.status() != "zombie" for process in family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(repository, tmp_path, number):
    command = [sys.executable, "-m", "serving.embedded", "--recipe", "demo", "--log", str(tmp_path / "log")]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        # The tests' repository was built with other numbers than the recipe has, which is said first.
        lines = [process.stderr.readline() for _ in range(10)]
        assert lines[0].startswith("note: ")
        welcome = lines[1:]
        assert "serving demo" in welcome[0]
        assert any("/v2/models/image_score/generate" in line for line in welcome)
        (url,) = re.findall(r"gRPC +(\S+)", "".join(welcome))
        with Client(url) as client:
            assert client.score([jpeg()])[0].ok
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert "stopping" in process.stderr.read()
        assert family
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_a_taken_port_is_named(capsys, repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_step("serving.embedded", lambda: main(["--recipe", "demo", "--http-port", str(port)])) == 1
    assert f"port {port} is taken" in capsys.readouterr().err


def test_a_missing_repository_says_how_to_build_it(tmp_path):
    with pytest.raises(ServingError, match="build it with: make engines"), start(tmp_path / "absent", tmp_path):
        pass


def test_a_plan_is_refused_before_the_server_starts(repository, tmp_path):
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    (copy / "clip_encoder/1/model.plan").write_bytes(b"plan")
    refuse_plans(repository)
    with pytest.raises(ServingError, match="make engines TARGET=onnx"):
        refuse_plans(copy)


def test_a_model_that_does_not_load_shows_the_log(repository, tmp_path):
    broken = Path(shutil.copytree(repository, tmp_path / "models"))
    (broken / "clip_encoder/1/model.onnx").write_bytes(b"not a model")
    with pytest.raises(ServingError, match=r"(?s)tritonserver ended.*clip_encoder"), start(broken, tmp_path):
        pass


def test_a_missing_server_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSIEVE_TRITON", str(tmp_path))
    with pytest.raises(ServingError, match="install it with: make triton"):
        find_wheel()


def test_a_numpy_that_corrupts_tensors_is_refused(tmp_path, monkeypatch):
    """The wheel's Python backend was compiled for numpy 1; under numpy 2 it repeats each tensor's first byte."""
    wheel = find_wheel()
    packages = tmp_path / "lib" / f"python{wheel.python}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "pytriton").symlink_to(wheel.site_packages / "pytriton")
    (packages / "numpy-2.4.6.dist-info").mkdir()
    monkeypatch.setenv("CLIPSIEVE_TRITON", str(tmp_path))
    with pytest.raises(ServingError, match=r"numpy \['2.4.6'\], the server's Python backend needs numpy 1.x"):
        find_wheel()


def test_the_servers_pillow_and_onnxruntime_are_the_toolchains():
    """Training and serving decode and compute with the same releases, so that both see the same numbers."""

    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        return {line for line in lines if line.startswith(("pillow==", "onnxruntime=="))}

    assert pins("triton.txt") == pins("dev.txt")


def test_log_tail_of_a_missing_log_is_empty(tmp_path):
    assert start(tmp_path, tmp_path).log_tail() == ""
