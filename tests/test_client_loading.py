"""Servers that are loading or stopping are waited for; those that will never have the models are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
from command_line import run_cli
from pictures import jpeg
from waiting import until

from clipsieve import Client, NotClipsieve, ServerNotReady, ServerUnavailable, outage
from clipsieve.transport import Retry
from clipsieve.triton_messages import failure_from_status
from serving.embedded import EmbeddedServer
from serving.model_control import ControlledServer
from serving.tritonserver import ServerSettings, held_ports
from tests.fakes import SERVE, UNKNOWN_MODEL, Failure, FakeModel

NOT_FOUND, UNAVAILABLE, CANCELLED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
)
STOPPING = (
    "[request id: <id_unknown>] Server is stopping, scheduler for model has stopped accepting new inference requests"
)
ANY_CALL = [
    Failure(NOT_FOUND, "Request for unknown model: 'image_score' has no available versions"),
    Failure(NOT_FOUND, "Request for unknown model: 'demo_head' has no available versions"),
    Failure(UNAVAILABLE, "Server exiting"),
    Failure(UNAVAILABLE, "Server not ready"),
]
"""What tritonserver 2.51 answered to a call about a model while it loaded or stopped, and was not only unknown."""
INFERENCE = [
    *ANY_CALL,
    Failure(NOT_FOUND, "in ensemble 'image_score', Request for unknown model: 'demo_head' has no available versions"),
    Failure(UNAVAILABLE, STOPPING),
    Failure(UNAVAILABLE, f"in ensemble 'image_score', {STOPPING}"),
    Failure(UNAVAILABLE, "in ensemble 'image_score', "),
    Failure(UNAVAILABLE, "Stream removed (Socket closed (GOAWAY received; Error code: 0; Debug Text: ))"),
    Failure(CANCELLED, "CANCELLED"),
]
ONCE = Retry(attempts=1)


def _text(failure: Failure) -> str:
    return f"{failure.status.name}-{failure.message}"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch) -> None:
    monkeypatch.setattr(outage, "_POLL_S", 0.02)


@pytest.fixture(params=["grpc", "http"])
def protocol(request) -> str:
    return request.param


@pytest.fixture
def url(model: FakeModel, protocol: str) -> Iterator[str]:
    with SERVE[protocol](model) as address:
        yield address


@pytest.mark.parametrize("failure", INFERENCE, ids=_text)
def test_every_text_of_a_server_that_loads_or_stops_means_unavailable(failure):
    assert isinstance(failure_from_status(failure.status.name, failure.message, "host:1"), ServerUnavailable)


@pytest.mark.parametrize("failure", INFERENCE, ids=_text)
def test_inference_waits_for_a_server_that_is_loading_or_stopping(url, protocol, model, failure, caplog):
    model.not_ready_next = 1
    with Client(url, protocol, wait_s=60, retry=ONCE) as client:
        client.heads()
        client.score([b"first"])
        model.refuse_next = [failure] * 2
        (score,) = client.score([b"one"])
    assert score.ok
    assert "waiting for the server up to 60 s" in caplog.text
    assert "the server is back" in caplog.text


@pytest.mark.parametrize("failure", ANY_CALL, ids=_text)
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.heads(),
        lambda client: client.embed_dim(),
        lambda client: client.score([b"one"]),
        lambda client: client.embed([b"one"]),
    ],
    ids=["heads", "embed_dim", "score", "embed"],
)
def test_first_call_waits_for_a_server_that_is_loading_or_stopping(url, protocol, model, failure, call):
    model.refuse_next = [failure]
    with Client(url, protocol, wait_s=60, retry=ONCE) as client:
        call(client)
    assert not model.refuse_next


def test_model_that_is_unknown_to_a_server_that_loads_is_waited_for(url, protocol, model, caplog):
    """An ensemble is "not found" until its models are loaded."""
    model.refuse_next = [UNKNOWN_MODEL] * 2
    model.not_ready_next = 3
    with Client(url, protocol, wait_s=60) as client:
        assert client.score([b"one"])[0].ok
    assert "is still loading its models" in caplog.text


@pytest.mark.parametrize("failure", [*ANY_CALL, UNKNOWN_MODEL], ids=_text)
def test_library_that_does_not_wait_says_that_the_server_is_not_ready(url, protocol, model, failure):
    model.refuse_next, model.ready = [failure], False
    with Client(url, protocol) as client, pytest.raises(ServerNotReady, match=r"loading|stopping"):
        client.heads()


def test_model_that_came_between_two_questions_is_no_other_server(url, protocol, model):
    model.refuse_next = [UNKNOWN_MODEL]
    with Client(url, protocol) as client:
        assert client.heads()


def test_server_that_is_ready_and_has_no_such_model_is_not_waited_for(url, protocol, model):
    model.refuse_next = [UNKNOWN_MODEL] * 2
    expected = f"{url} is not a clipsieve server: it is ready and has no model image_score .*is not found"
    with Client(url, protocol, wait_s=3600) as client, pytest.raises(NotClipsieve, match=expected):
        client.heads()


def test_run_ends_when_the_model_is_gone_for_good(url, protocol, model):
    with Client(url, protocol, wait_s=3600) as client:
        assert client.score([b"one"])[0].ok
        model.refuse_next = [UNKNOWN_MODEL] * 2
        with pytest.raises(NotClipsieve):
            client.score([b"two"])


def test_health_of_a_server_that_loads_or_stops(url, protocol, model):
    with Client(url, protocol, wait_s=3600) as client:  # health does not wait
        model.not_ready_next = 1
        assert client.health().status == "not_ready"
        for failure in ANY_CALL:
            model.refuse_next = [failure]
            health = client.health()
            assert health.status == "not_ready"
            assert failure.message in health.message
        model.refuse_next = [UNKNOWN_MODEL] * 2
        assert (client.health().status, client.health().ok) == ("failing", True)


# ---- the command line ----


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(f"photo {number}".encode())
    return folder


@pytest.fixture
def inputs(photos, tmp_path) -> dict[str, list]:
    """A run of each command over images, without the address."""
    shard = tmp_path / "shard.tar"
    subprocess.run(["tar", "--sort=name", "-cf", shard, "-C", photos, "."], check=True)
    return {
        "score": ["score", photos, "--out", tmp_path / "out.csv"],
        "score to stdout": ["score", photos],
        "shards": ["score", shard],
        "embed": ["embed", photos, "--out", tmp_path / "out.npy"],
        "video": ["video", photos / "0.jpg", "--out", tmp_path / "videos.csv"],
    }


@pytest.mark.parametrize("kind", ["score", "score to stdout", "shards", "embed", "video"])
def test_run_over_a_server_that_stays_loading_ends_as_without_a_server(url, protocol, model, inputs, kind):
    model.refuse_next = [UNKNOWN_MODEL] * 1000
    model.ready = False
    result = run_cli(*inputs[kind], "--url", url, "--protocol", protocol, "--wait", "0.1")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "waiting for the server up to 0.1 s" in result.stderr
    assert f"clipsieve: server unavailable: {url} answers, but is still loading its models" in result.stderr


@pytest.mark.parametrize("kind", ["score", "score to stdout", "shards", "embed"])
def test_run_waits_for_a_server_that_is_loading(url, protocol, model, inputs, kind):
    model.refuse_next = [UNKNOWN_MODEL] * 2
    model.not_ready_next = 2
    result = run_cli(*inputs[kind], "--url", url, "--protocol", protocol, "--wait", "60")
    assert result.exit_code == 0, result.stderr


def test_run_over_another_server_fails_at_once(url, protocol, model, photos):
    model.refuse_next = [UNKNOWN_MODEL] * 1000
    result = run_cli("score", photos, "--url", url, "--protocol", protocol, "--wait", "3600")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"clipsieve: {url} is not a clipsieve server" in result.stderr


def test_heads_of_a_server_that_is_loading(url, protocol, model):
    model.refuse_next = [UNKNOWN_MODEL]
    model.ready = False
    result = run_cli("heads", "--url", url, "--protocol", protocol)
    assert result.exit_code == 5
    assert "still loading its models" in result.stderr


def test_health_command_of_a_server_that_is_loading(url, protocol, model):
    model.ready = False
    result = run_cli("health", "--url", url, "--protocol", protocol)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not_ready" in result.stderr
    assert "still loading its models" in result.stderr


# ---- the real server ----

_GATE = """
import os as _os
import time as _time


def _pass(gate):
    with open(gate + ".reached", "w"):
        pass
    while not _os.path.exists(gate):
        _time.sleep(0.02)
"""
_WAIT_S = 600
"""The longest wait of a test, for events that take seconds on a quiet machine."""


@pytest.fixture
def gate(tmp_path) -> Path:
    """A file that lets preprocess load from `gated` once it exists; `<gate>.reached` appears when it tries."""
    return tmp_path / "gate"


@pytest.fixture
def gated(repository, tmp_path, gate) -> Path:
    copy = shutil.copytree(repository, tmp_path / "repository")
    path = copy / "preprocess" / "1" / "model.py"
    start = "    def initialize(self, args):\n"
    text = path.read_text()
    assert start in text
    path.write_text(text.replace(start, f"{start}        _pass({str(gate)!r})\n") + _GATE)
    return copy


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(seed=number % 4))
    return folder


class _Run:
    """`clipsieve score` in a process of its own."""

    def __init__(self, pictures: Path, out: Path, *options: str) -> None:
        command = [sys.executable, "-m", "clipsieve.cli", "score", pictures, "--out", out, "--json-log", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.out, self.pictures = out, pictures

    def read_until(self, text: str) -> None:
        """Read its stderr up to a line with a text."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"it ended without {text!r}: {''.join(self.lines)}")

    def check_all_rows(self) -> None:
        """Check that the run ends with 0 and a score for each picture."""
        _, rest = self.process.communicate(timeout=_WAIT_S)
        assert self.process.returncode == 0, "".join([*self.lines, rest])
        table = pq.read_table(self.out)
        assert table["image_path"].to_pylist() == sorted(map(str, self.pictures.iterdir()))
        assert table["error"].null_count == len(table)


@contextmanager
def _running(*arguments) -> Iterator[_Run]:
    run = _Run(*arguments)
    with run.process:
        try:
            yield run
        finally:
            run.process.kill()


def test_run_that_starts_before_the_real_server(gated, gate, pictures, tmp_path):
    with ExitStack() as stack:
        (port,) = stack.enter_context(held_ports(0))
        options = ["--url", f"127.0.0.1:{port}", "--wait", str(_WAIT_S)]
        server = EmbeddedServer(
            gated, ServerSettings(grpc_port=port, http_port=0, metrics_port=0, log_path=tmp_path / "log")
        )
        run = stack.enter_context(_running(pictures, tmp_path / "out.parquet", *options))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        run.read_until("waiting for the server")
        starting = pool.submit(server.__enter__)
        try:
            until(gate.with_name("gate.reached").exists)
            assert run.process.poll() is None
            gate.touch()
            starting.result()
            run.check_all_rows()
        finally:
            gate.touch()
            starting.result()
            server.__exit__(None, None, None)


def test_run_that_meets_a_real_server_while_it_loads(gated, gate, pictures, tmp_path, protocol):
    """The server's ports are open while a model loads, and then it answers that it has no image_score."""
    key = "k" * 20
    gate.touch()
    with (
        EmbeddedServer(
            gated,
            ServerSettings.on_free_ports(tmp_path / "log", control="explicit", admin_key=key),
        ) as server,
        ControlledServer(server.grpc_url, key, _WAIT_S) as controlled,
        ThreadPoolExecutor(1) as pool,
    ):
        url = server.grpc_url if protocol == "grpc" else server.http_url
        gate.unlink()
        gate.with_name("gate.reached").unlink()
        controlled.unload("image_score")
        controlled.unload("preprocess")
        loading = pool.submit(controlled.load, "image_score")
        try:
            until(gate.with_name("gate.reached").exists)
            heads = run_cli("heads", "--url", url, "--protocol", protocol)
            assert (heads.exit_code, heads.stdout) == (5, "")
            assert "still loading its models" in heads.stderr
            health = run_cli("health", "--url", url, "--protocol", protocol)
            assert (health.exit_code, "not_ready" in health.stderr) == (1, True)
            options = ["--url", url, "--protocol", protocol, "--wait", str(_WAIT_S)]
            with _running(pictures, tmp_path / "out.parquet", *options) as run:
                run.read_until("waiting for the server")
                gate.touch()
                run.check_all_rows()
        finally:
            gate.touch()
            loading.result()
    assert any("still loading its models" in line for line in run.lines)
