"""serving/container, as far as it can be tested without a docker engine: these tests build no image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.paths import ROOT
from common.proof_file import proof_path
from serving.container import health
from serving.embedded import EmbeddedServer, ServerSettings
from serving.gateway.settings import parse_settings
from serving.triton_wheel import TritonWheel
from serving.tritonserver_options import ADMIN_APIS, ADMIN_HEADER, control_options, tracing_options

CONTAINER = ROOT / "serving" / "container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
IMAGE = r"nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3"


def instructions() -> list[str]:
    """Dockerfile instructions, continuation lines joined, without comments."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line]


def stage(name: str) -> list[str]:
    """The instructions of one build stage."""
    text = "\n".join(instructions())
    match = re.search(rf"^FROM .* AS {name}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match
    return match[1].strip().splitlines()


def test_the_image_is_a_default_only_and_new_enough():
    for path in ROOT.rglob("*"):
        if path.is_file() and path.suffix in {".yaml", ".py", ".sh", ".md", ""} and CONTAINER in path.parents:
            for line in path.read_text().splitlines():
                if match := re.search(IMAGE, line):
                    assert re.search(r"ARG TRITON_IMAGE=|\$\{TRITON_IMAGE:-", line), f"{path}: {line}"
                    assert (int(match[1]), int(match[2])) >= (26, 4), line
    assert re.findall(IMAGE, DOCKERFILE) == re.findall(IMAGE, (CONTAINER / "compose.yaml").read_text())


def test_both_stages_of_triton_are_the_same_image():
    assert [line for line in instructions() if line.startswith("FROM")] == [
        "FROM ${TRITON_IMAGE} AS serve",
        "FROM serve AS build",
        "FROM ${PYTHON_IMAGE} AS gateway",
    ]


@pytest.mark.parametrize("name", ["serve", "build", "gateway"])
def test_no_stage_ends_as_root(name):
    users = [line for line in stage(name) if line.startswith("USER")]
    assert users[-1] == "USER 1000:1000"


def test_what_is_copied_is_there():
    for line in instructions():
        if line.startswith("COPY"):
            assert (ROOT / line.split()[1]).exists(), line


def test_dockerfile_habits():
    text = "\n".join(instructions())
    assert ":latest" not in text
    assert "ADD " not in text
    assert "sudo" not in text
    assert "--no-install-recommends" in text
    assert "rm -rf /var/lib/apt/lists/*" in text
    for line in instructions():
        if line.startswith(("CMD", "ENTRYPOINT")):
            assert isinstance(json.loads(line.split(" ", 1)[1]), list), f"not in exec form: {line}"


def test_what_the_image_adds_is_pinned_as_everywhere():
    (install,) = (line for line in stage("serve") if "pip install" in line)
    pinned = "--constraint dev.txt --constraint heic.txt pillow pydantic pyyaml ${EXTRA_PACKAGES}"
    assert install.endswith(f"cd /opt/clipsieve/requirements && python3 -m pip install {pinned}")


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_the_server_is_shut_in(name):
    service = COMPOSE["services"][name]
    assert service["user"] == "1000:1000"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(volume["read_only"] for volume in service["volumes"])
    assert service["shm_size"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_gateway_is_shut_in_and_wants_tokens():
    service = COMPOSE["services"]["gateway"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") and port.endswith(":8080") for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"])
    environment = {name: value for name, value in service["environment"].items() if not value.startswith("$")}
    settings = parse_settings([], "", environment)
    assert (settings.url, settings.host, settings.port, settings.metrics_port) == ("triton:8001", "0.0.0.0", 8080, 8081)
    assert str(settings.tokens) == f"{service['volumes'][0]['target']}/tokens.txt"
    assert not settings.open


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_what_the_world_reaches_is_shut_in(name):
    service = COMPOSE["services"][name]
    assert (service["profiles"], service["read_only"], service["cap_drop"]) == ([name], True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ports"] == ["${TLS_PORT:-443}:443"]
    binds = [volume for volume in service["volumes"] if volume["type"] == "bind"]
    assert all(volume["read_only"] for volume in binds)
    text = (CONTAINER / binds[0]["source"]).read_text()
    places = set(re.findall(r"\b(triton:\d+|gateway:\d+)", text))
    assert places == {"triton:8000", "triton:8001", "gateway:8080"}
    assert set(service.get("environment", {})) <= set(re.findall(r"\{\$(\w+):", text))


@pytest.mark.parametrize("name", ["prometheus", "blackbox", "grafana"])
def test_what_watches_is_shut_in_too(name):
    service = COMPOSE["services"][name]
    assert service["profiles"] == ["monitoring"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert all(volume["read_only"] for volume in service["volumes"] if volume["type"] == "bind")


@pytest.mark.parametrize("name", ["nginx", "caddy", "prometheus", "blackbox", "grafana"])
def test_images_of_others_have_versions(name):
    assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/-]+:v?\d+\.\d+\.\d+\}", COMPOSE["services"][name]["image"])


def test_every_file_that_compose_mounts_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict) and volume["type"] == "bind" and not volume["source"].startswith("$"):
                assert (CONTAINER / volume["source"]).exists(), volume
            if isinstance(volume, dict) and volume["type"] == "volume":
                assert volume["source"] in COMPOSE["volumes"]


def test_prometheus_finds_what_it_scrapes_in_compose():
    text = (ROOT / "serving" / "monitoring" / "prometheus.yml").read_text()
    config = yaml.safe_load(text)
    places = {place.split("//")[-1].split("/")[0] for place in re.findall(r"http://[^\s]+|\w+:\d{4}", text)}
    assert places >= {"triton:8002", "triton:8000", "blackbox:9115", "gateway:8081"}
    assert {place.split(":")[0] for place in places if "[" not in place} <= set(COMPOSE["services"])
    assert COMPOSE["services"]["triton-cpu"]["networks"]["default"]["aliases"] == ["triton"]
    mounted = {Path(volume["target"]).name for volume in COMPOSE["services"]["prometheus"]["volumes"]}
    assert mounted >= {"prometheus.yml", *config["rule_files"]}


def test_grafana_finds_its_datasource_and_its_dashboard():
    grafana = COMPOSE["services"]["grafana"]
    folders = {volume["target"]: CONTAINER / volume["source"] for volume in grafana["volumes"] if "source" in volume}
    (provider,) = yaml.safe_load((folders["/etc/grafana/provisioning"] / "dashboards" / "clipsieve.yaml").read_text())[
        "providers"
    ]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folders[provider["options"]["path"]] / home.name).is_file()
    sources = yaml.safe_load((folders["/etc/grafana/provisioning"] / "datasources" / "prometheus.yaml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"


def test_nobody_logs_in_to_grafana():
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_the_servers_command_is_the_images_with_more_options():
    (command,) = (json.loads(line.removeprefix("CMD ")) for line in stage("serve") if line.startswith("CMD"))
    assert COMPOSE["services"]["triton"]["command"][: len(command)] == command


def test_the_server_gets_longer_to_stop_than_its_requests():
    (seconds,) = re.findall(r"--exit-timeout-secs=(\d+)", (CONTAINER / "start.sh").read_text())
    assert int(COMPOSE["services"]["triton"]["stop_grace_period"].removesuffix("s")) > int(seconds)


def test_plans_are_built_in_the_image_that_serves():
    engines, triton = COMPOSE["services"]["engines"], COMPOSE["services"]["triton"]
    assert engines["build"]["args"] == triton["build"]["args"]
    assert (engines["build"]["target"], triton["build"]["target"]) == ("build", "serve")
    assert engines["user"] != "root"
    assert engines["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_engines_command_is_make_engines_with_the_images_environment():
    """The image's environment is not made again although the checkout's files are newer."""
    (command,) = (json.loads(line.removeprefix("CMD "))[2] for line in stage("build") if line.startswith("CMD"))
    words = command.removeprefix("exec ").split()
    command = [*words, "--dry-run", "--no-print-directory"]  # under `make test` this make is an inner one
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = shown.replace("\\\n\t", "").splitlines()
    assert all(line.startswith("/opt/clipsieve/venv/bin/python -m ") for line in lines), shown
    assert any("build.engine" in line for line in lines)


def test_start_checks_first_and_then_starts_triton_as_the_embedded_server_does(tmp_path):
    text = (CONTAINER / "start.sh").read_text()
    subprocess.run(["sh", "-n", CONTAINER / "start.sh"], check=True)
    assert text.index("python3 -m common.preflight") < text.index("exec tritonserver")
    kept = ("--model-control", "--disable-auto", "--backend-config", "--exit-timeout")
    wheel = TritonWheel(environment=tmp_path, site_packages=tmp_path, python="3.11")
    embedded = EmbeddedServer(tmp_path, ServerSettings(log_path=tmp_path / "log"))._command(wheel, tmp_path)
    (tmp_path / "models").mkdir()
    flags = start(tmp_path / "models", tmp_path).stdout.splitlines()[1:]
    assert {flag for flag in flags if flag.startswith(kept)} == {flag for flag in embedded if flag.startswith(kept)}


IN_THE_IMAGE = {"PIL", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions", "yaml"}
"""And what tritonserver's own image has for its Python processes: numpy."""
MODULES_OF = """
import importlib, runpy, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
names = {name.partition(".")[0] for name in set(sys.modules) - before}
names -= {*sys.stdlib_module_names, "cython_runtime"}
print(" ".join(sorted(name for name in names if not name.startswith("_"))))
"""


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (["common.preflight"], {"common", "recipes", *IN_THE_IMAGE}),
        (["serving.container.health"], {"common", "serving"}),
    ],
)
def test_the_image_holds_what_its_checks_import(modules, allowed):
    command = [sys.executable, "-c", MODULES_OF, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed


# ---- the health check ----


@pytest.fixture(autouse=True)
def temporary_markers(monkeypatch, tmp_path_factory):
    """A server that a test proves is proved for that test alone."""
    monkeypatch.setattr(health, "MARKERS", tmp_path_factory.mktemp("markers"))
    return health.MARKERS


def requests_of(monkeypatch) -> list[str]:
    """Names of the models that are requested from now on."""
    models, post = [], health.post

    def counted(url: str, model: str, *others: Any) -> list[dict[str, Any]]:
        models.append(model)
        return post(url, model, *others)

    monkeypatch.setattr(health, "post", counted)
    return models


def test_health_is_a_proof_once_and_a_real_inference_from_then_on(server, monkeypatch, temporary_markers):
    models, url = requests_of(monkeypatch), f"http://{server.http_url}"
    assert health.main([url]) == 0
    assert models == ["proof", "demo_head", "image_score", "image_embedding"]
    assert len(list(temporary_markers.iterdir())) == 1
    models.clear()
    assert health.main([url]) == 0
    assert models == ["proof", "image_score", "image_embedding"]


def test_a_server_is_proved_again_after_its_start_and_with_another_proof(monkeypatch, tmp_path):
    init = tmp_path / "stat"
    init.write_text("1 (triton server) S " + " ".join(map(str, range(4, 53))))
    monkeypatch.setattr(health, "INIT", init)
    first = health.marker_path("http://a", b"proof")
    assert health.marker_path("http://a", b"proof") == first
    assert health.marker_path("http://a", b"another") != first
    init.write_text(init.read_text().replace(" 22 ", " 99 "))
    assert health.marker_path("http://a", b"proof") != first
    monkeypatch.setattr(health, "INIT", tmp_path / "absent")
    assert health.marker_path("http://a", b"proof") != first


def test_without_a_place_for_its_marker_a_server_is_proved_each_time(server, monkeypatch, capsys):
    monkeypatch.setattr(health, "MARKERS", Path("/proc/absent"))
    models = requests_of(monkeypatch)
    assert [health.main([f"http://{server.http_url}"]) for _ in range(2)] == [0, 0]
    assert models.count("demo_head") == 2
    assert "will be proved again" in capsys.readouterr().err


def test_loopback_is_asked_without_a_proxy(server):
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, str(CONTAINER / "health.py"), f"http://{server.http_url}"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_start_forgets_that_an_earlier_server_was_proved(tmp_path):
    (tmp_path / "models").mkdir()
    marker = tmp_path / health.marker_path("http://a", b"proof").name
    marker.touch()
    assert start(tmp_path / "models", tmp_path).returncode == 0
    assert not marker.exists()


@contextmanager
def answering(status: int, body: str, proof: str | None = None) -> Iterator[str]:
    """A server that gives one answer to all, but for its proof; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            is_proof = proof is not None and "/proof/" in self.path
            self.send_response(200 if is_proof else status)
            self.end_headers()
            outputs = {"outputs": [{"name": "proof", "datatype": "BYTES", "shape": [1], "data": [proof]}]}
            self.wfile.write(json.dumps(outputs).encode() if is_proof else body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


FAULTS = [
    (500, '{"error": "stub is not healthy"}', "HTTP 500: .*stub is not healthy"),
    (200, '{"outputs": [{"name": "nsfw", "data": [NaN]}]}', r"\['nsfw'\] are not finite"),
    (200, '{"outputs": []}', "no outputs"),
    (200, '{"outputs": [{"name": "nsfw"}]}', "demo_head: KeyError|image_score: KeyError"),
    (200, "not JSON", "demo_head: |image_score: "),
]


@pytest.mark.parametrize("is_proved", [False, True])
@pytest.mark.parametrize(("status", "body", "expected"), FAULTS)
def test_unhealthy_servers(repository, status, body, expected, is_proved, capsys):
    text = proof_path(repository).read_text()
    with answering(status, body, text) as url:
        if is_proved:
            health.remember(health.marker_path(url, text.encode()))
        assert health.main([url]) == 1
    assert re.search(expected, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "proof cannot be read: JSONDecodeError"),
        ('{"format": 7}', "format 7, this version reads 1"),
        (None, "proof: HTTP 404"),
    ],
)
def test_a_server_without_a_proof_that_can_be_read_is_unhealthy(text, expected, capsys):
    with answering(404, '{"error": "unknown model"}', text) as url:
        assert health.main([url]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("message", ["Exceeds maximum queue size", "Request timeout expired"])
def test_a_busy_server_is_healthy_once_it_was_proved(repository, message, capsys):
    text = proof_path(repository).read_text()
    with answering(503, json.dumps({"error": message}), text) as url:
        assert health.main([url]) == 1
        assert f'unhealthy: demo_head: {{"error": "{message}' in capsys.readouterr().err
        health.remember(health.marker_path(url, text.encode()))
        assert health.main([url]) == 0
    assert f'busy: image_score: {{"error": "{message}' in capsys.readouterr().err


def test_no_server_is_unhealthy(capsys):
    assert health.main(["http://127.0.0.1:9"]) == 1
    assert "unhealthy: proof: " in capsys.readouterr().err


def start(models, tmp_path, **variables: str) -> subprocess.CompletedProcess:
    """start.sh with this checkout in place of the image's copy, and a tritonserver that prints its arguments."""
    fake = tmp_path / "bin" / "tritonserver"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\npwd; printf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", str(CONTAINER / "start.sh"), "--log-verbose=1"]
    environment = os.environ | {"MODELS": str(models), "PATH": path, "TMPDIR": str(tmp_path)} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_start_becomes_tritonserver_in_an_empty_folder(tmp_path):
    (tmp_path / "models").mkdir()
    done = start(tmp_path / "models", tmp_path)
    assert done.returncode == 0, done.stderr
    folder, *arguments = done.stdout.splitlines()
    assert list(Path(folder).iterdir()) == []
    assert arguments[0] == f"--model-repository={tmp_path / 'models'}"
    assert arguments[-1] == "--log-verbose=1"


def test_nobody_has_the_key_of_the_admin_apis_unless_it_is_given(tmp_path):
    (tmp_path / "models").mkdir()
    keys = set()
    for _ in range(2):
        arguments = start(tmp_path / "models", tmp_path).stdout
        (grpc_key,) = re.findall(
            rf"--grpc-restricted-protocol={ADMIN_APIS}:{ADMIN_HEADER}=([0-9a-f]{{32}})\n", arguments
        )
        assert f"--http-restricted-api={ADMIN_APIS}:{ADMIN_HEADER}={grpc_key}\n" in arguments
        keys.add(grpc_key)
    assert len(keys) == 2


def test_explicit_control_is_that_of_the_embedded_server(tmp_path):
    (tmp_path / "models").mkdir()
    key = "0123456789abcdef"
    done = start(tmp_path / "models", tmp_path, MODEL_CONTROL="explicit", CLIPSIEVE_ADMIN_KEY=key)
    assert set(control_options("explicit", key)) < set(done.stdout.splitlines())


def test_tracing_is_that_of_the_embedded_server_but_for_its_rate(tmp_path):
    (tmp_path / "models").mkdir()
    url = "http://collector:4318/v1/traces"
    done = start(tmp_path / "models", tmp_path, TRACING_URL=url, TRACING_RATE="1")
    assert set(tracing_options(url)) < set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MODEL_CONTROL": "explicit"}, "MODEL_CONTROL=explicit needs one"),
        ({"MODEL_CONTROL": "poll"}, "MODEL_CONTROL is none or explicit, found poll"),
        ({"CLIPSIEVE_ADMIN_KEY": "short"}, "needs 16 or more characters, found 5"),
        ({"CLIPSIEVE_ADMIN_KEY": "sixteen letters!"}, "may hold letters, digits, _ and - only"),
    ],
)
def test_start_refuses_a_setting_it_cannot_use(tmp_path, variables, expected):
    (tmp_path / "models").mkdir()
    done = start(tmp_path / "models", tmp_path, **variables)
    assert done.returncode != 0
    assert done.stdout == ""
    assert expected in done.stderr


def test_start_refuses_a_proof_of_other_models(repository, tmp_path):
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    assert start(models, tmp_path).returncode == 0
    proof_path(models).unlink()
    done = start(models, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"common.preflight: .*proof.json: not found; .*make engines", done.stderr)


def test_start_refuses_a_plan_that_does_not_fit(tmp_path):
    version = tmp_path / "models" / "clip_encoder" / "1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(b"from somewhere")
    done = start(tmp_path / "models", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("common.preflight: ")
