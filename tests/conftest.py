"""Fixtures that are slow to make, made once: the demo encoder, and one real tritonserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests build into a folder of their own; set before anything imports common.paths.
_artifacts = tempfile.TemporaryDirectory(prefix="clipsieve-tests-", ignore_cleanup_errors=True)
os.environ["CLIPSIEVE_ARTIFACTS"] = _artifacts.name
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for a network
# A shell starts background jobs with Ctrl-C ignored, and what they start inherits it; tests send SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

import tiers  # noqa: E402
from artefacts import write_head  # noqa: E402 (after the environment)
from programs import is_left_out, line_of, program_or_skip  # noqa: E402
from waiting import PATIENCE_S  # noqa: E402

from build.encoder import build_encoder  # noqa: E402
from build.head import build_head  # noqa: E402
from build.repository import install  # noqa: E402
from common.manifest import EncoderManifest  # noqa: E402
from common.paths import encoder_folder, head_folder, repository_folder  # noqa: E402
from recipes.schema import Recipe, load_recipe  # noqa: E402
from serving.embedded import EmbeddedServer, ServerSettings  # noqa: E402
from tests.chromium import Browser, browser  # noqa: E402
from tests.fakes import FakeModel, serve_grpc  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    for mark, meaning in tiers.MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {meaning}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Importing the files of other tiers takes each worker of `make quick` longer than many of its tests.
    return tiers.is_left_out(collection_path.stem, config.option.markexpr) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: tiers.turn_of(item.path.stem))
    for item in items:
        for mark in tiers.marks_of(item.path.stem, getattr(item, "fixturenames", ())):
            item.add_marker(mark)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Ctrl-C as it was: a step sets what it does for the rest of its process, which here is that of other tests."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    if isinstance(report, pytest.TestReport) and is_left_out(report):
        return "left out", "s", "LEFT OUT"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if reports := terminalreporter.getreports("left out"):
        terminalreporter.write_line(line_of(reports))


@pytest.fixture(scope="session")
def demo() -> Recipe:
    return load_recipe("demo")


@pytest.fixture(scope="session")
def encoder(demo: Recipe) -> EncoderManifest:
    """The demo recipe's encoder, exported and checked as `make engines` would."""
    return build_encoder(demo, encoder_folder(demo))


@pytest.fixture(scope="session")
def patient_demo(demo: Recipe) -> Recipe:
    """The demo, whose queues refuse nothing on a slow machine: test_overload has the demo's own limit, or another."""
    return demo.model_copy(
        update={"serving": demo.serving.model_copy(update={"queue_timeout_ms": 1000 * int(PATIENCE_S)})}
    )


@pytest.fixture(scope="session")
def repository(demo: Recipe, patient_demo: Recipe, encoder: EncoderManifest) -> Path:
    """The demo's model repository, with a random head: the tests of the seams need no trained one."""
    folder = head_folder(demo, demo.heads[0])
    write_head(folder, encoder, demo.heads[0].class_names, notice=demo.notice)
    build_head(folder, demo.build.opset)
    target = repository_folder(demo)
    install(patient_demo, target)
    return target


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The real tritonserver on free ports. Tests that harm a server start their own."""
    log = Path(_artifacts.name) / "tritonserver.log"
    with EmbeddedServer(repository, ServerSettings.on_free_ports(log)) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser for the pages of one file."""
    program_or_skip("chromium")
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files with a self-signed certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = [program_or_skip("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-out", names[0], "-keyout", names[1]], check=True, capture_output=True)
    return names


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """An address that refuses connections, and that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.bind(("localhost", 0))  # and does not listen
        yield f"localhost:{held.getsockname()[1]}"


@pytest.fixture
def model() -> FakeModel:
    """The model that the server at `url` answers with."""
    return FakeModel()


@pytest.fixture
def url(model: FakeModel) -> Iterator[str]:
    """A small server in this process, for faults that the real one does not have at will."""
    with serve_grpc(model) as address:
        yield address
