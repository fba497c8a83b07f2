"""The supervisor: servers that it takes for broken, those that it leaves alone, and the server it brings back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
from pictures import jpeg
from tritonclient.utils import InferenceServerException
from waiting import PATIENCE_S, until

from clipsieve import Client
from clipsieve.transport import Retry
from common.paths import ROOT
from serving.embedded import EmbeddedServer, ServerSettings, keep_serving, parser
from serving.probe import Finding, finding_from, probe
from serving.processes import broken_stubs, children
from serving.proof import ProofMissed
from serving.supervisor import Pace, Supervisor, Work, ending, hung_models, pause_s, work_from_metrics
from serving.triton_wheel import ServingError

QUICK = Pace(interval_s=0.3, deadline_s=30, first_pause_s=0.1)


# What is broken


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.UNAVAILABLE", "in ensemble 'image_score', Exceeds maximum queue size", "busy"),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", "busy"),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", "failed"),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", "late"),
        ("StatusCode.INVALID_ARGUMENT", "inference request batch-size must be <= 2 for 'demo_head'", "refused"),
        ("StatusCode.INTERNAL", "Stub process 'preprocess_0_0' is not healthy.", "failed"),
    ],
)
def test_a_failed_probe_is_sorted_by_what_the_server_said(status, message, kind):
    finding = finding_from("image_score", InferenceServerException(message, status))
    assert finding == Finding(kind, f"image_score: {message}")
    assert finding.is_final == ("healthy" in message)


METRICS = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
nv_inference_request_success{model="image_score",version="1"} 605
nv_inference_request_success{model="demo_head",version="1"} 600
nv_inference_request_success{model="demo_head",version="2"} 5
nv_inference_request_failure{model="demo_head",reason="OTHER",version="1"} 7
nv_inference_pending_request_count{model="clip_encoder",version="1"} 3
"""


def test_work_is_read_from_the_metrics_and_versions_are_added():
    assert work_from_metrics(METRICS) == Work({"image_score": 605, "demo_head": 605}, {"clip_encoder": 3})


NOTHING = {"image_score": 5.0, "image_embedding": 0.0, "clip_encoder": 5.0, "demo_head": 5.0}


@pytest.mark.parametrize(
    ("finished", "waiting", "hung"),
    [
        ({}, {}, ["image_score", "image_embedding"]),  # nothing was answered at all
        ({"image_score": 9.0, "clip_encoder": 9.0}, {"clip_encoder": 4.0}, []),  # busy
        ({"image_score": 9.0, "clip_encoder": 9.0}, {"demo_head": 4.0}, ["demo_head"]),  # one head of several
    ],
)
def test_a_model_hangs_when_it_finishes_nothing_although_requests_wait(finished, waiting, hung):
    assert hung_models(Work(NOTHING, waiting), Work(NOTHING | finished, waiting)) == hung


def test_without_metrics_a_late_probe_counts():
    assert hung_models(Work({}, {}), Work({}, {})) == ["image_score", "image_embedding"]


def test_the_kernel_names_dead_children():
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.DEVNULL) as process:
        until(lambda: (process.pid, "Z") in {(child.pid, child.state) for child in children(os.getpid())})
    assert broken_stubs(os.getpid(), settle_s=0) == []  # dead, but none of Triton's


def test_pauses_double_up_to_the_longest():
    assert [pause_s(Pace(), count) for count in range(1, 10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_how_a_process_ended():
    assert [ending(1), ending(-9)] == ["with status 1", "by SIGKILL"]


# When it acts: a server that does as it is told


class ScriptedServer:
    """Stands for an EmbeddedServer: ends or fails to start as the test says."""

    grpc_url = "127.0.0.1:9"
    metrics_url = "http://127.0.0.1:9/metrics"
    log_path = Path("log")
    exit_timeout_s = 1
    pid = os.getpid()

    def __init__(self, status: int | None = None, refuses: int = 0, refusal: Exception | None = None) -> None:
        self.status = status
        self.refuses = refuses
        self.refusal = refusal or ServingError("it does not start")
        self.events: list[str] = []

    def wait(self, timeout_s: float | None = None) -> int | None:
        return self.status

    def stop(self, grace_s: float | None = None) -> None:
        self.events.append("stop")

    def start_again(self) -> None:
        self.events.append("start")
        if self.refuses:
            self.refuses -= 1
            raise self.refusal

    def log_tail(self) -> str:
        return "its last words"


def supervise(
    server: ScriptedServer, pace: Pace, findings: list[Finding | None] | None = None
) -> tuple[Supervisor, list]:
    """A supervisor with the test's findings instead of probes, and its messages."""
    lines: list[str] = []
    supervisor = Supervisor(cast(EmbeddedServer, server), pace, lines.append)
    if findings is not None:
        cast(Any, supervisor).look = lambda before: findings.pop(0)
    return supervisor, lines


def test_a_server_that_ended_is_reported_at_once():
    supervisor, _ = supervise(ScriptedServer(status=-9), QUICK)
    assert supervisor.next_problem() == "tritonserver ended by SIGKILL"


def test_one_failed_probe_is_not_enough_and_a_good_one_begins_again():
    failed, fine = Finding("failed", "no"), None
    supervisor, lines = supervise(ScriptedServer(), QUICK, [failed, failed, fine, failed, failed, failed])
    assert supervisor.next_problem() == "no (3 probes in a row)"
    assert lines == ["a probe failed, looking again in 0.3 s: no"] * 4


def test_a_dead_python_process_needs_no_second_probe():
    supervisor, _ = supervise(ScriptedServer(), QUICK, [Finding("failed", "Stub process 'x' is not healthy.")])
    assert supervisor.next_problem() == "Stub process 'x' is not healthy."


def test_it_tries_until_the_server_starts_and_gives_up_at_the_limit():
    pace = Pace(first_pause_s=0.01, max_restarts=3)
    server = ScriptedServer(refuses=2)
    supervisor, lines = supervise(server, pace)
    supervisor.restart("it died")
    assert server.events == ["stop", "start"] * 3
    assert [line.split(":")[0] for line in lines[:-1]] == ["restarting"] * 3
    assert "serving again" in lines[-1]
    with pytest.raises(ServingError, match=r"(?s)restarted 3 times within 10 minutes, giving up: again.*last words"):
        supervisor.restart("again")


def test_a_server_that_misses_its_proof_is_not_started_again():
    server = ScriptedServer(refuses=9, refusal=ProofMissed("rocket.jpg: cosine 0.7"))
    supervisor, lines = supervise(server, QUICK)
    with pytest.raises(ProofMissed, match=r"rocket\.jpg"):
        supervisor.restart("it died")
    assert server.events == ["stop", "start"]
    assert lines == ["restarting: it died"]


def test_metrics_are_read_without_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Supervisor(server).work().finished


def test_restarts_are_forgotten_after_the_window():
    supervisor, _ = supervise(ScriptedServer(), Pace(max_restarts=1, window_s=0.05))
    supervisor.restart("once")
    time.sleep(0.06)
    supervisor.restart("twice")


def test_without_restarts_the_command_ends_with_its_server():
    arguments = parser().parse_args(["--recipe", "demo", "--no-restart"])
    with pytest.raises(ServingError, match=r"(?s)tritonserver ended by SIGKILL.*its last words"):
        keep_serving(cast(EmbeddedServer, ScriptedServer(status=-9)), arguments)


# The real server


@contextlib.contextmanager
def started(repository: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    log = tmp_path / "log"
    with EmbeddedServer(repository, ServerSettings.on_free_ports(log, exit_timeout_s=4)) as server:
        yield server


@contextlib.contextmanager
def supervised(server: EmbeddedServer, pace: Pace = QUICK) -> Iterator[list[str]]:
    """A supervisor in a thread, and its messages. The thread ends with the server that it can no longer start."""
    lines: list[str] = []
    supervisor = Supervisor(server, pace, lines.append)
    done = threading.Event()
    ordinary_wait = server.wait

    def wait(timeout_s: float | None = None) -> int | None:
        if done.is_set():
            raise ServingError("the test is over")
        return ordinary_wait(timeout_s)

    server.wait = wait  # type: ignore[method-assign]

    def run() -> None:
        with contextlib.suppress(ServingError):
            supervisor.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lines
    finally:
        done.set()
        thread.join()


def stub_of(server: EmbeddedServer, model: str) -> psutil.Process:
    processes = psutil.Process(server.pid).children()
    return next(process for process in processes if any(f"/{model}/" in word for word in process.cmdline()))


FAULTS: dict[str, tuple[Callable[[EmbeddedServer], None], str]] = {
    "the server is killed": (lambda server: os.kill(server.pid, signal.SIGKILL), "tritonserver ended by SIGKILL"),
    "a stub is killed": (lambda server: stub_of(server, "preprocess").kill(), "is dead|is not healthy"),
    "a stub hangs": (lambda server: stub_of(server, "clip_encoder").suspend(), "is stopped|is not healthy"),
}


def test_what_no_longer_works_is_brought_back_on_the_same_ports(repository, tmp_path):
    """The same server goes through every fault."""
    pace = dataclasses.replace(QUICK, max_restarts=len(FAULTS))
    with started(repository, tmp_path) as server, supervised(server, pace) as lines:
        ports = server.grpc_url, server.http_url, server.metrics_url
        for count, (harm, reason) in enumerate(FAULTS.values(), start=1):
            before = server.pid
            harm(server)
            until(lambda count=count: sum("serving again" in line for line in lines) == count)
            assert server.pid != before
            restarts = [line for line in lines if line.startswith("restarting")]
            assert len(restarts) == count
            assert re.search(reason, restarts[-1])
            with Client(server.grpc_url) as client:
                assert client.score([jpeg()])[0].ok
        assert (server.grpc_url, server.http_url, server.metrics_url) == ports
        assert (tmp_path / "log").read_text().count("Started GRPCInferenceService") == 1 + len(FAULTS)


def test_a_busy_server_is_left_alone(repository, tmp_path, monkeypatch):
    """Probes come too late under load, and the server is not broken: it has finished other requests meanwhile."""
    monkeypatch.setattr("serving.supervisor.probe", lambda client, picture, _: probe(client, picture, 0.001))
    enough = threading.Event()
    endless = itertools.takewhile(lambda _: not enough.is_set(), itertools.repeat(jpeg()))
    with (
        started(repository, tmp_path) as server,
        Client(server.grpc_url, concurrency=200, images_per_request=1, retry=Retry(attempts=1)) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        supervisor = Supervisor(server, QUICK)
        load = pool.submit(client.score, endless)
        try:
            until(lambda: supervisor.work().waiting.get("clip_encoder"), "load on the encoder")
            before = supervisor.work()
            until(lambda: not hung_models(before, supervisor.work()), "progress of every model with a queue")
            assert [supervisor.look(before) for _ in range(5)] == [None] * 5
            with grpc.InferenceServerClient(server.grpc_url) as other:
                late = probe(other, server.picture, 0.001)
        finally:
            enough.set()
        assert late is not None
        assert late.kind == "late"
        assert {score.error.code for score in load.result() if score.error is not None} <= {"SERVER_BUSY"}


# The command


@contextlib.contextmanager
def command(*options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`python -m serving.embedded` on free ports once it serves, with its gRPC address."""
    words = [sys.executable, "-m", "serving.embedded", "--recipe", "demo", *options]
    words += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        welcome = "".join(lines_until(process, "image_score/generate"))
        (url,) = re.findall(r"gRPC +(\S+)", welcome)
        yield process, url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        assert process.stderr is not None
        process.stderr.close()


def lines_until(process: subprocess.Popen, text: str) -> list[str]:
    """Lines on stderr up to one that has `text`."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}: {lines}")


def tritonserver_of(process: subprocess.Popen) -> psutil.Process:
    return next(child for child in psutil.Process(process.pid).children() if child.name() == "tritonserver")


def test_the_command_restarts_a_killed_server_and_stops_in_order(repository, tmp_path):
    with command("--log", str(tmp_path / "log")) as (process, url):
        tritonserver_of(process).kill()
        lines = lines_until(process, "serving again")
        assert "restarting: tritonserver ended by SIGKILL" in lines[0]
        assert "serving.supervisor: " in lines[0]
        server = tritonserver_of(process)
        answers: list[InferenceServerException | None] = []
        with grpc.InferenceServerClient(url) as client:
            for _ in range(12):
                client.async_infer("image_score", [pictures()], lambda result, error: answers.append(error))
            until(lambda: None in answers, "a score")  # those that wait too long are refused before
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            until(lambda: len(answers) == 12)
        statuses = {error.status() for error in answers if error is not None}
        assert statuses <= {"StatusCode.UNAVAILABLE"}  # 2.51 refuses the next step of an ensemble under way
        assert not server.is_running()


def pictures() -> grpc.InferInput:
    """A request of sixteen pictures, which keeps the server at work for a moment."""
    tensor = grpc.InferInput("image", [16, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg(640, 480)]] * 16, dtype=object))
    return tensor
