"""nginx and Caddy, as serving/proxy sets them up, in front of the real tritonserver and gateway."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateways import Answer, RunningGateway, running_gateway
from pictures import encoded, jpeg, noise
from programs import program_or_skip
from tritonclient.grpc import service_pb2 as _service_pb2
from typer.testing import CliRunner
from waiting import PATIENCE_S, until

from clipsieve import AccessDenied, Client, Retry
from clipsieve.cli.main import app
from common.paths import ROOT
from serving.embedded import free_ports
from serving.gateway import token

service_pb2: Any = _service_pb2  # its messages are made at import, which pyright cannot see

PROXY = ROOT / "serving" / "proxy"
README = (PROXY / "README.md").read_text()
PICTURE = jpeg(seed=1)
TEXT = base64.b64encode(PICTURE).decode()
SERVICE = "/inference.GRPCInferenceService/"
METHODS = set(re.findall(r"`(\w+)`", README.split("METHOD is ")[1].split(", whose message")[0]))


@dataclass(frozen=True)
class Places:
    """Addresses behind a proxy."""

    gateway: str
    triton_http: str
    triton_grpc: str
    patience_s: int = 60


@dataclass(frozen=True)
class Proxy:
    """A proxy that listens."""

    port: int
    certificate: str

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        context = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=PATIENCE_S, context=context)
        try:
            connection.putrequest(method, path)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None and "Transfer_Encoding" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with suppress(OSError):  # it was closed before everything was sent; what it said may be there
                connection.send(body or b"")
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def client(self, protocol: str, secret: str | None, **more: Any) -> Client:
        scheme = {"grpc": "grpcs", "http": "https"}[protocol]
        return Client(f"{scheme}://localhost:{self.port}", token=secret, ca_file=self.certificate, **more)


def _nginx(folder: Path, port: int, places: Places, certificate: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    text = (PROXY / "nginx.conf").read_text()
    for old, new in {
        " /tmp/": f" {folder}/",
        "server gateway:8080;": f"server {places.gateway};",
        "server triton:8000;": f"server {places.triton_http};",
        "server triton:8001;": f"server {places.triton_grpc};",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/clipsieve/tls/certificate.pem": certificate[0],
        "/etc/clipsieve/tls/key.pem": certificate[1],
        "_read_timeout 60s": f"_read_timeout {places.patience_s}s",
    }.items():
        assert old in text, f"nginx.conf has no {old!r}"
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    # Its workers would be `nobody`, who may not enter a test's folder.
    user = "user root; " if os.getuid() == 0 else ""
    return ["-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", f"{user}daemon off;"], {}


def _caddy(folder: Path, port: int, places: Places, certificate: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    text = (PROXY / "Caddyfile").read_text()
    assert "response_header_timeout 60s" in text
    (folder / "Caddyfile").write_text(
        text.replace("response_header_timeout 60s", f"response_header_timeout {places.patience_s}s")
    )
    environment = {
        "SITE": f"localhost:{port}", "TLS": " ".join(certificate), "GATEWAY": places.gateway,
        "TRITON_HTTP": places.triton_http, "TRITON_GRPC": places.triton_grpc, "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder), "HOME": str(folder),
    }  # fmt: skip
    return ["run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")], environment


PROGRAMS: dict[str, Callable[..., tuple[list[str], dict[str, str]]]] = {"nginx": _nginx, "caddy": _caddy}


@contextmanager
def running_proxy(name: str, folder: Path, places: Places, certificate: Sequence[str]) -> Iterator[Proxy]:
    """The real binary with the file that is checked in, in front of these addresses."""
    program = program_or_skip(name)
    (port,) = free_ports(0)
    arguments, environment = PROGRAMS[name](folder, port, places, certificate)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *arguments], stdout=output, stderr=output, env=os.environ | environment, cwd=folder
        )

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("localhost", port)) == 0

    try:
        until(listens, f"a port of {name}")
        yield Proxy(port, certificate[0])
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory) -> Iterator[tuple[RunningGateway, str]]:
    """A gateway with tokens, and one of them."""
    folder = tmp_path_factory.mktemp("gateway")
    secret = token.new_token()
    (folder / "tokens.txt").write_text(token.token_line("alice", secret) + "\n")
    with running_gateway(server.grpc_url, folder, "--tokens", str(folder / "tokens.txt"), "--max-mib", "2") as running:
        yield running, secret


@pytest.fixture(scope="module", params=PROGRAMS)
def proxy(request, server, gateway, certificate, tmp_path_factory) -> Iterator[Proxy]:
    places = Places(f"127.0.0.1:{gateway[0].port}", server.http_url, server.grpc_url)
    with running_proxy(request.param, tmp_path_factory.mktemp(request.param), places, certificate) as running:
        yield running


@pytest.fixture(scope="module")
def secret(gateway) -> str:
    return gateway[1]


@pytest.fixture(scope="module")
def direct(server) -> float:
    """The picture's score, from Triton itself."""
    with Client(server.grpc_url) as client:
        return float(client.score([PICTURE])[0].scores[0])


# ---- what is let through ----


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_score_through_it_as_directly(proxy, secret, direct, protocol):
    pictures = [jpeg(seed=seed) for seed in range(200)]
    with proxy.client(protocol, secret) as client:
        scores = client.score([PICTURE, b"hello", *pictures])
        assert [score.ok for score in scores] == [True, False, *[True] * 200]
        assert float(scores[0].scores[0]) == pytest.approx(direct, abs=1e-5)
        assert scores[1].error.code == "NOT_AN_IMAGE"
        assert client.embed([PICTURE])[0].ok
        health = client.health()
    assert health.ok
    assert "proof" in health.message


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_picture_of_the_largest_kind_passes(proxy, secret, protocol):
    picture = encoded(noise(3000, 2500), "BMP")  # 22 MB, which a proxy's buffers do not hold
    with proxy.client(protocol, secret) as client:
        assert client.score([picture])[0].ok


def test_certificates_of_the_environment_are_enough(proxy, secret, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    environment = {"SSL_CERT_FILE": proxy.certificate, "CLIPSIEVE_TOKEN": secret}
    for scheme in ("grpcs", "https"):
        arguments = ["score", str(tmp_path / "a.jpg"), "--url", f"{scheme}://localhost:{proxy.port}"]
        result = CliRunner(env=environment).invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_curl_is_answered_by_the_gateway(proxy, secret, direct, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(PICTURE)
    curl = ["curl", "-sS", "--cacert", proxy.certificate, "-H", f"Authorization: Bearer {secret}"]
    url = f"https://localhost:{proxy.port}/score"
    files = ["-F", "image=@a.jpg", "-F", "image=@b.jpg"]
    for more in (
        files[:2],
        files,
        ["--http1.1", *files],
        ["-H", "Content-Type: image/jpeg", "--data-binary", "@a.jpg"],
    ):
        finished = subprocess.run([*curl, *more, url], cwd=tmp_path, capture_output=True, check=True)
        answer = json.loads(finished.stdout)
        for result in answer if isinstance(answer, list) else [answer]:
            assert result["heads"]["demo"]["score"] == pytest.approx(direct, abs=1e-5)


def test_tritons_own_endpoint_for_curl_is_let_through(proxy, secret, direct):
    body = json.dumps({"image": TEXT}).encode()
    headers = {"Content_Type": "application/json", "Authorization": f"Bearer {secret}"}
    answer = proxy.send("POST", "/v2/models/image_score/generate", body, **headers)
    assert answer.status == 200, answer.body
    assert answer.json["demo"] == pytest.approx(direct, abs=1e-5)


def test_what_the_page_lists_is_let_through(proxy, secret):
    lines = [line for line in README.splitlines() if line.startswith(("| `GET /v2", "| `POST /v2"))]
    requests = [request for line in lines for request in re.findall(r"`(GET|POST) (/v2[^`]+)`", line.split(" | ")[0])]
    assert len(requests) == 6
    for method, path in requests:
        for model in ("image_score", "image_embedding", "proof", "demo_head"):
            body = b"{" if method == "POST" else None
            answer = proxy.send(method, path.replace("MODEL", model), body, Authorization=f"Bearer {secret}")
            assert answer.status in ((400, 500) if body else (200,)), (method, path, answer.body)  # Triton's own words
            assert b"the proxy" not in answer.body


def test_each_has_the_gateways_page_and_health(proxy, secret):
    assert b"<html" in proxy.send("GET", "/").body
    assert proxy.send("GET", "/health").json == {"status": "ok"}
    assert proxy.send("GET", "/token", Authorization=f"Bearer {secret}").json == {"name": "alice"}
    assert proxy.send("GET", "/nothing").code == "NOT_FOUND"


# ---- what is not ----

ADMIN = [
    ("GET", "/v2"), ("GET", "/v2/"), ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/demo_head/load"), ("POST", "/v2/repository/models/demo_head/unload"),
    ("GET", "/v2/systemsharedmemory/status"), ("POST", "/v2/systemsharedmemory/region/a/register"),
    ("POST", "/v2/cudasharedmemory/unregister"), ("GET", "/v2/trace/setting"), ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/image_score/trace/setting"), ("GET", "/v2/logging"), ("POST", "/v2/logging"),
    ("GET", "/v2/models/stats"), ("GET", "/v2/models/image_score/stats"),
    ("POST", "/v2/models/clip_encoder/infer"), ("POST", "/v2/models/preprocess/infer"),
    ("GET", "/v2/models/image_score/infer"), ("POST", "/v2/models/image_score/config"),
    ("POST", "/v2/models/image_score/generate_stream"), ("DELETE", "/v2/models/image_score"),
    ("POST", "//v2/repository/index"), ("POST", "/v2//repository/index"), ("POST", "/v2/./repository/index"),
    ("POST", "/v2/models/image_score/infer/../../../repository/index"), ("POST", "/score/../v2/repository/index"),
    ("POST", "/v2/%72epository/index"), ("POST", "/v2%2frepository%2findex"), ("POST", "/%76%32/repository/index"),
    ("POST", "/v2/models/image_score%2f..%2f..%2frepository%2findex/infer"),
    ("POST", "/v2/repository/index?/v2/models/image_score/infer"), ("POST", "/v2/repository/index;/infer"),
    ("POST", "/v2/repository/index%00/v2/models/image_score/infer"), ("GET", "/metrics"), ("GET", "//metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_nothing_else_of_triton_is_reached(proxy, secret, method, path):
    answer = proxy.send(method, path, b"{}" if method == "POST" else None, Authorization=f"Bearer {secret}")
    assert answer.status in (400, 404), answer.body
    # The words of the proxy or of the gateway, and not Triton's.
    assert any(words in answer.body for words in (b"lets nothing through", b'"NOT_FOUND"', b"nginx")), answer.body


def _call(proxy: Proxy, method: str, message: bytes, secret: str | None, **options: Any) -> grpc.RpcError | bytes:
    credentials = grpc.ssl_channel_credentials(Path(proxy.certificate).read_bytes())
    sizes = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials, sizes) as channel:
        try:
            return channel.unary_unary(SERVICE + method)(message, timeout=PATIENCE_S, metadata=metadata, **options)
        except grpc.RpcError as error:
            return error


def test_of_grpc_only_what_the_page_lists_is_let_through(proxy, secret):
    config = service_pb2.ModelConfigRequest(name="image_score").SerializeToString()
    assert len(METHODS) == 7
    for name in [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]:
        answer: Any = _call(proxy, name, config if name.startswith("Model") else b"", secret)
        if name in METHODS:
            assert isinstance(answer, bytes) or answer.code().name == "INVALID_ARGUMENT", (name, answer)
        else:
            assert answer.code().name == "UNIMPLEMENTED", (name, answer)


@pytest.mark.parametrize("secret_of_another", [None, "wrong"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_without_a_token_nothing_of_triton_is_answered(proxy, protocol, secret_of_another):
    with proxy.client(protocol, secret_of_another) as client, pytest.raises(AccessDenied, match="UNAUTHENTICATED"):
        client.score([PICTURE])
    assert proxy.send("POST", "/score", PICTURE, Content_Type="image/jpeg").code == "UNAUTHORIZED"


REFUSED = {"error": "send the body as it is, as application/json or application/octet-stream"}


@pytest.mark.parametrize("header", ["Content_Encoding: gzip", "Content_Type: application/x-www-form-urlencoded; a=b"])
def test_compressed_bodies_and_forms_are_refused(proxy, secret, header):
    name, value = header.split(": ")
    headers = {"Authorization": f"Bearer {secret}", name: value}
    answer = proxy.send("POST", "/v2/models/image_score/infer", b"{}", **headers)
    assert (answer.status, answer.json) == (415, REFUSED)


def test_compressed_messages_are_refused(proxy, secret):
    answer: Any = _call(proxy, "ModelConfig", b"a" * 10_000, secret, compression=grpc.Compression.Gzip)
    assert answer.code().name == "UNKNOWN"
    assert "415" in answer.details()


# ---- limits ----


@pytest.mark.parametrize("kind", ["promised", "in chunks"])
def test_a_body_over_the_limit_is_refused(proxy, secret, kind):
    headers = {"Authorization": f"Bearer {secret}", "Inference_Header_Content_Length": "0"}
    body = b"\xff" * (49 << 20)
    if kind == "in chunks":
        headers["Transfer_Encoding"] = "chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = proxy.send("POST", "/v2/models/image_score/infer", body, **headers)
    assert answer.status in ((413,) if kind == "promised" else (411, 413))
    assert "48 MiB" in answer.json["error"] or "Content-Length" in answer.json["error"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_picture_over_the_limit_is_that_pictures_error(proxy, secret, protocol, direct):
    with proxy.client(protocol, secret, retry=Retry(attempts=1)) as client:
        scores = client.score([b"\xff\xd8" * (25 << 20), PICTURE])
        assert scores[0].error.code == "TOO_MANY_BYTES", scores[0].error
        assert float(scores[1].scores[0]) == pytest.approx(direct, abs=1e-5)


def test_the_gateways_limits_are_its_own(proxy, secret):
    headers = {"Authorization": f"Bearer {secret}", "Content_Type": "image/jpeg"}
    answer = proxy.send("POST", "/score", b"\xff" * (3 << 20), **headers)
    assert (answer.status, answer.code) == (413, "TOO_MANY_BYTES")


# ---- while what is behind it is away ----


@contextmanager
def relay(port: int, target: str) -> Iterator[None]:
    """Passes connections to a port on to another server, as that server after its restart."""
    host, _, target_port = target.rpartition(":")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(target_port))) as other:
                back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
                back.start()
                _pump(self.request, other)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", port), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            running.shutdown()
            thread.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def silent(port: int) -> Iterator[None]:
    """Takes connections and says nothing, as a server that hangs."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(100)
        yield


@pytest.mark.parametrize("fault", ["away", "silent"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_server_that_is_away_is_waited_for(name, protocol, fault, server, gateway, certificate, tmp_path, direct):
    """502 and 504 of the proxy, and then the server's own answer."""
    ports = free_ports(0, 0)
    places = Places(f"127.0.0.1:{gateway[0].port}", *(f"127.0.0.1:{port}" for port in ports), patience_s=1)
    real = {"grpc": server.grpc_url, "http": server.http_url}[protocol]
    port = ports[["http", "grpc"].index(protocol)]
    results: list[Any] = []

    def score(proxy: Proxy) -> None:
        with proxy.client(protocol, gateway[1], wait_s=PATIENCE_S) as client:
            results.extend(client.score([PICTURE]))

    with running_proxy(name, tmp_path, places, certificate) as proxy, ExitStack() as behind:
        held = behind.enter_context(ExitStack())
        if fault == "silent":
            held.enter_context(silent(port))
        answer = proxy.send("GET", "/v2/health/ready", Authorization=f"Bearer {gateway[1]}")
        if protocol == "http":
            assert answer.status == (502 if fault == "away" else 504)
            assert "error" in answer.json
        thread = threading.Thread(target=score, args=(proxy,))
        thread.start()
        thread.join(2)
        assert not results
        held.close()
        behind.enter_context(relay(port, real))
        thread.join(PATIENCE_S)
    assert float(results[0].scores[0]) == pytest.approx(direct, abs=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_gateway_no_token_is_let_in(name, server, gateway, certificate, tmp_path):
    (port,) = free_ports(0)
    places = Places(f"127.0.0.1:{port}", server.http_url, server.grpc_url)
    with running_proxy(name, tmp_path, places, certificate) as proxy:
        answer = proxy.send("GET", "/v2/health/ready", Authorization=f"Bearer {gateway[1]}")
        assert answer.status in (502, 503)
        answer = _call(proxy, "ServerReady", b"", gateway[1])
        assert isinstance(answer, grpc.RpcError)
