"""Tokens, headers and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc
from typer.testing import CliRunner

from clipsieve import AccessDenied, Client, Retry, ServerUnavailable
from clipsieve.cli.main import app
from clipsieve.grpc_transport import _GRPC_ROOTS, _trusted_certificates
from clipsieve.transport import Endpoint
from tests.fakes import FakeModel, _GrpcService, _HttpHandler, _HttpServer, fake_score, running
from tests.waiting import PATIENCE_S

TOKEN = "a.b.c"


class _Guard(grpc.ServerInterceptor):
    """Refuses calls without the token; remembers what came with them."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def intercept_service(self, continuation, handler_call_details):
        metadata = dict(handler_call_details.invocation_metadata)
        self.seen.append(metadata)
        if metadata.get("authorization") == f"Bearer {TOKEN}":
            return continuation(handler_call_details)

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

        handler: Any = continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)


@contextmanager
def _grpc_server(guard: _Guard, certificate: tuple[bytes, bytes] | None = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[guard])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_GrpcService(FakeModel()), server)
    if certificate is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([certificate]))
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def _http_server(guard: _Guard, certificate: tuple[str, str] | None = None) -> Iterator[str]:
    class Handler(_HttpHandler):
        model = FakeModel()

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            guard.seen.append({name.lower(): value for name, value in self.headers.items()})
            if self.headers.get("authorization") == f"Bearer {TOKEN}":
                return True
            self.close_connection = True
            self._reply(401, b"who are you?")
            return False

    with _HttpServer(("localhost", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        with running(server) as address:
            yield address


SERVE = {"grpc": _grpc_server, "http": _http_server}


@pytest.mark.parametrize("protocol", SERVE)
def test_token_and_headers_are_sent_with_every_request(protocol):
    guard = _Guard()
    with SERVE[protocol](guard) as url, Client(url, protocol, token=TOKEN, headers={"X-Tenant": "mine"}) as client:
        assert client.score([b"one"])[0].scores == fake_score(b"one")
        assert client.health().ok
    assert len(guard.seen) >= 4
    assert all(each["x-tenant"] == "mine" for each in guard.seen)


@pytest.mark.parametrize("protocol", SERVE)
def test_wrong_token_ends_the_run_instead_of_failing_each_image(protocol, tmp_path):
    (tmp_path / "a.jpg").touch()
    with SERVE[protocol](_Guard()) as url:
        with Client(url, protocol, token="wrong") as client, pytest.raises(AccessDenied, match="UNAUTHENTICATED"):
            client.score([b"one"])
        arguments = ["score", str(tmp_path / "a.jpg"), "--url", url, "--protocol", protocol]
        result = CliRunner(env={"CLIPSIEVE_TOKEN": "wrong"}).invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "refuses access (UNAUTHENTICATED)" in result.stderr
        assert CliRunner(env={"CLIPSIEVE_TOKEN": TOKEN}).invoke(app, arguments).exit_code == 3


@contextmanager
def _tls_server(protocol: str, certificate: tuple[str, str]) -> Iterator[str]:
    if protocol == "http":
        with _http_server(_Guard(), certificate) as url:
            yield url
        return
    with open(certificate[0], "rb") as chain, open(certificate[1], "rb") as key:
        pair = key.read(), chain.read()
    with _grpc_server(_Guard(), pair) as url:
        yield url


@pytest.mark.parametrize(("protocol", "scheme"), [("grpc", "grpcs"), ("http", "https")])
def test_tls(protocol, scheme, certificate):
    with _tls_server(protocol, certificate) as address:
        for url in (address, f"{scheme}://{address}"):
            with Client(url, protocol, ca_file=certificate[0], token=TOKEN) as client:
                assert client.score([b"one"])[0].ok
        with (
            Client(f"{scheme}://{address}", token=TOKEN, timeout_s=5) as client,
            pytest.raises(ServerUnavailable),  # its certificate is nobody's
        ):
            client.score([b"one"])


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_certificates_of_the_environment_are_trusted_by_both(scheme, certificate, monkeypatch):
    protocol = "grpc" if scheme == "grpcs" else "http"
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    monkeypatch.delenv(_GRPC_ROOTS, raising=False)
    with _tls_server(protocol, certificate) as address, Client(f"{scheme}://{address}", token=TOKEN) as client:
        assert client.score([b"one"])[0].ok


def test_grpc_has_a_variable_of_its_own_too(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    monkeypatch.setenv(_GRPC_ROOTS, certificate[1])
    assert _trusted_certificates(Endpoint("grpc", "localhost:1", tls=True)) is None
    monkeypatch.delenv(_GRPC_ROOTS)
    with open(certificate[0], "rb") as file:
        assert _trusted_certificates(Endpoint("grpc", "localhost:1", tls=True)) == file.read()


ONCE = Retry(attempts=1)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_without_its_server_is_waited_for(status):
    """Answers of nginx while the server behind it starts again, and after them the server's own."""
    left = [3]

    class Handler(_HttpHandler):
        model = FakeModel()

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            if "/infer" in self.path and left[0]:
                left[0] -= 1
                self.close_connection = True
                self._reply(status, f"<html><head><title>{status} Bad\n Gateway</title></head></html>".encode())
                return False
            return True

    with _HttpServer(("localhost", 0), Handler) as server, running(server) as url:
        with Client(url, "http", retry=ONCE, wait_s=PATIENCE_S) as client:
            assert client.score([b"one"])[0].scores == fake_score(b"one")
        left[0] = 10**6
        message = f"no answer from .*a web page .{status} Bad Gateway.*, so not Triton"
        with Client(url, "http", retry=ONCE) as client, pytest.raises(ServerUnavailable, match=message):
            client.score([b"one"])


def test_too_many_requests_for_a_gateway_are_a_busy_server():
    class Handler(_HttpHandler):
        model = FakeModel()

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            if "/infer" not in self.path:
                return True
            self.close_connection = True
            self._reply(429, b"slow down")
            return False

    with (
        _HttpServer(("localhost", 0), Handler) as server,
        running(server) as url,
        Client(url, "http", retry=ONCE) as client,
    ):
        error = client.score([b"one"])[0].error
        assert error is not None
        assert (error.code, error.message) == ("SERVER_BUSY", "slow down")


def test_the_other_protocols_port_is_named(server):
    message = r"does not speak gRPC: is this the HTTP port\?"
    with Client(server.http_url, "grpc", retry=ONCE) as client, pytest.raises(ServerUnavailable, match=message):
        client.heads()
    message = r"does not speak HTTP: is this the gRPC port\?"
    with Client(server.grpc_url, "http", retry=ONCE) as client, pytest.raises(ServerUnavailable, match=message):
        client.heads()
