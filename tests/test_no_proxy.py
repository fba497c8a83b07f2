"""A proxy in the environment, where nothing listens, does not come between neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from command_line import run_cli

from serving import no_proxy
from serving.drift import read_metrics
from serving.model_control import ControlledServer
from serving.monitoring.queries import Prometheus
from serving.triton_wheel import ServingError
from tests.fakes import SERVE, FakeModel, running, serve_grpc


@pytest.fixture(autouse=True)
def proxy(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


class _Answer(BaseHTTPRequestHandler):
    body = json.dumps({"data": ["nsfw"]}).encode()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _answering() -> Iterator[str]:
    with ThreadingHTTPServer(("localhost", 0), _Answer) as server, running(server) as address:
        yield f"http://{address}"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("command", ["score", "heads", "health"])
def test_the_client_reaches_a_server(protocol, command, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    arguments = [command, tmp_path] if command == "score" else [command]
    with SERVE[protocol](FakeModel()) as url:
        result = run_cli(*arguments, "--url", url, "--protocol", protocol)
    assert result.exit_code == 0, result.stderr


def test_metrics_are_read():
    with _answering() as url:
        assert read_metrics(f"{url}/metrics") == _Answer.body.decode()


def test_prometheus_answers():
    with _answering() as url:
        assert Prometheus(url).get("label/head/values") == ["nsfw"]


def test_orders_reach_a_server():
    with (
        serve_grpc(FakeModel()) as url,
        ControlledServer(url, "k" * 20) as controlled,
        pytest.raises(ServingError, match="Method not implemented"),
    ):
        controlled.load("demo_head")


def test_programs_get_an_environment_without_proxies(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("KEPT", "1")
    environment = no_proxy.environment()
    assert environment["KEPT"] == "1"
    assert not [name for name in environment if "proxy" in name.lower()]
