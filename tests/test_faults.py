"""A server under load that is harmed: every request gets a score or an error, and no score is another's.

The whole table of faults is trials.faults; a server that comes back is test_supervisor.
"""

from __future__ import annotations

import os
import signal

import pytest
from waiting import PATIENCE_S, until

from benchmarks.server_processes import held_mib, resident_mib, stubs
from clipsieve import Client
from serving.processes import shared_regions
from trials.faults import connections, processes
from trials.faults.__main__ import FAULTS, shown
from trials.faults.load import Group, Load, Request
from trials.faults.scene import Row, Scene, pictures
from trials.prefixed_server import PrefixedServer


@pytest.fixture(scope="module")
def few_pictures() -> list[bytes]:
    return pictures()[:6]


@pytest.fixture
def scene(server, tmp_path, few_pictures) -> Scene:
    """The shared server, for tests in which only clients do wrong."""
    groups = [Group("interactive", wait_s=0, workers=2, timeout_s=PATIENCE_S)]
    return Scene(server, tmp_path, Load(server.grpc_url, few_pictures, groups))


def only_ok(scene: Scene) -> bool:
    (group,) = scene.load.groups
    return set(group.counts()) == {"ok"}


def wait_for(group: Group, outcome: str) -> None:
    """Wait until a request has ended with this outcome."""
    until(lambda: group.counts()[outcome], f"a request that ends with {outcome}")


# ---- clients that do wrong, on the shared server ----


def test_clients_that_vanish_harm_nobody(scene, monkeypatch):
    monkeypatch.setattr(connections, "TIMES", 20)
    with scene.load:
        assert "80 vanished" in connections.vanish_over_http(scene)
        connections.cancel_over_grpc(scene)
    assert only_ok(scene), str(scene.load.groups[0])


def test_half_open_connections_do_not_keep_others_out(scene, monkeypatch):
    monkeypatch.setattr(connections, "SLOW_CONNECTIONS", 200)
    monkeypatch.setattr(connections, "SLOW_S", 2)
    with scene.load:
        assert "beside 200 half-open connections" in connections.send_slowly(scene)
    assert only_ok(scene), str(scene.load.groups[0])


# ---- servers that end ----


def test_sigterm_under_load_leaves_no_request_without_an_answer(repository, tmp_path, few_pictures):
    groups = [Group("interactive", wait_s=0, workers=8, timeout_s=PATIENCE_S)]
    with PrefixedServer(repository, log_path=tmp_path / "log", exit_timeout_s=int(PATIENCE_S)) as server:
        load = Load(server.grpc_url, few_pictures, groups)
        with load:
            wait_for(groups[0], "ok")
            outcome = processes.terminate(Scene(server, tmp_path, load))
        assert server.poll() == 0, outcome
    assert set(groups[0].counts()) <= {"ok", "ServerUnavailable", "ServerNotReady"}, outcome


def test_a_dead_head_and_then_a_dead_server(repository, tmp_path, few_pictures):
    """A fault leaves errors, none of them a deadline's, and requests that do not need the dead process go on."""
    with PrefixedServer(repository, log_path=tmp_path / "log") as server:
        group = Group("interactive", wait_s=0, workers=4, timeout_s=PATIENCE_S)
        with Load(server.grpc_url, few_pictures, [group]):
            wait_for(group, "ok")
            (head,) = stubs(server.pid)["demo_head"]
            os.kill(head, signal.SIGKILL)
            wait_for(group, "INTERNAL")
            with Client(server.grpc_url) as client:
                assert client.embed(few_pictures[:1])[0].ok
            assert (regions := shared_regions(server.pid))
            os.kill(server.pid, signal.SIGKILL)
            wait_for(group, "ServerUnavailable")
    assert not any(path.exists() for path in regions)
    assert set(group.counts()) == {"ok", "INTERNAL", "ServerUnavailable"}


# ---- what is counted ----


def test_processes_are_found_by_model(server):
    assert {model: len(pids) for model, pids in stubs(server.pid).items()} == {
        "preprocess": 2,
        "clip_encoder": 2,
        "demo_head": 1,
        "proof": 1,
    }
    held = resident_mib(server.pid)
    assert set(held) == {
        "tritonserver",
        "preprocess 0",
        "preprocess 1",
        "clip_encoder 0",
        "clip_encoder 1",
        "demo_head",
        "proof",
    }
    assert all(mib > 5 for mib in held.values())
    files = shared_regions(server.pid)
    assert len(files) == 6
    assert held_mib(files) > 16  # 16 MiB each, of which not every page is touched; more after large requests


def test_a_group_tells_its_outcomes_and_longest_gap():
    group = Group("bulk", wait_s=0, workers=1)
    group.requests = [Request(0, 1, "ok"), Request(1, 2, "INTERNAL"), Request(2, 7, "ok"), Request(3, 8, "ok")]
    assert str(group) == "bulk: 3 ok, 1 INTERNAL"
    assert group.longest_gap_s() == 6


def test_a_group_without_scores_has_an_endless_gap():
    assert Group("bulk", wait_s=0, workers=1).longest_gap_s() == float("inf")


def test_a_fault_that_could_not_be_done_says_why():
    row = Row("disk", "", "", 0, 0, 0, skipped="mounting is not allowed")
    assert shown(row) == {"fault": "disk", "client_saw": "not run: mounting is not allowed"}


def test_every_fault_has_a_name_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
