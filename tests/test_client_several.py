"""Several servers in one `url`: the work is shared, and goes on past one that is gone, loading, dead or full."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from clipsieve import Client, ClipsieveError, InferenceFailed, Retry, ServerUnavailable
from tests.command_line import run_cli
from tests.fakes import SERVE, UNKNOWN_MODEL, Failure, FakeModel, demo_parameters, fake_score

ONCE = Retry(attempts=1)
IMAGES = [f"picture {number}".encode() for number in range(60)]
FULL = Failure(grpc.StatusCode.UNAVAILABLE, "in ensemble 'image_score', Exceeds maximum queue size")

DEAD = Failure(grpc.StatusCode.INTERNAL, "in ensemble 'image_score', Stub process 'preprocess_0_0' is not healthy.")


@contextmanager
def _two(protocols: str = "grpc grpc") -> Iterator[tuple[FakeModel, FakeModel, str]]:
    """Two servers, and the url that names both."""
    first, second = FakeModel(), FakeModel()
    one, other = protocols.split()
    with SERVE[one](first) as a, SERVE[other](second) as b:
        yield first, second, f"{one}://{a},{other}://{b}"


def _nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return f"localhost:{taken.getsockname()[1]}"


@pytest.mark.parametrize("protocols", ["grpc grpc", "http http", "grpc http"])
def test_the_work_is_shared_and_results_are_in_order(protocols: str) -> None:
    with _two(protocols) as (first, second, url), Client(url, concurrency=8) as client:
        first.delay_s = second.delay_s = 0.005
        scores = client.score(IMAGES)
    assert [score.scores for score in scores] == [fake_score(image) for image in IMAGES]
    assert sorted(first.seen + second.seen) == sorted(IMAGES)
    assert min(len(first.seen), len(second.seen)) >= 10


def test_a_slow_server_gets_less() -> None:
    with _two() as (slow, fast, url), Client(url, concurrency=8, images_per_request=1) as client:
        slow.delay_s, fast.delay_s = 0.2, 0.005
        assert all(score.ok for score in client.score(IMAGES))
        assert len(fast.seen) > 2 * len(slow.seen)


def test_one_that_is_gone_from_the_start_is_done_without() -> None:
    model = FakeModel()
    with SERVE["grpc"](model) as address, Client(f"{_nobody()},{address}", retry=ONCE) as client:
        assert [head.name for head in client.heads()] == ["demo"]
        assert all(score.ok for score in client.score(IMAGES))
    assert sorted(model.seen) == sorted(IMAGES)


def test_one_that_goes_away_in_between_loses_nothing() -> None:
    with _two() as (first, second, url), Client(url, retry=ONCE, images_per_request=1) as client:
        first.dead_after = 5
        scores = client.score(IMAGES)
    assert [score.scores for score in scores] == [fake_score(image) for image in IMAGES]
    assert set(second.seen) | set(first.seen[:5]) == set(IMAGES)


@pytest.mark.parametrize(
    "failure", [FULL, UNKNOWN_MODEL, Failure(grpc.StatusCode.INTERNAL, "Stub process is not healthy.")]
)
def test_what_only_one_server_cannot_do_the_other_does(failure: Failure) -> None:
    with _two() as (first, second, url), Client(url, retry=ONCE) as client:
        client.heads()
        first.fail_next = [failure] * 100
        second.delay_s = 0.001
        assert all(score.ok for score in client.score(IMAGES))
        assert sorted(second.seen) == sorted(IMAGES)


def test_when_all_are_full_that_is_the_error() -> None:
    with _two() as (first, second, url), Client(url, retry=ONCE) as client:
        client.heads()
        first.fail_next = second.fail_next = [FULL] * 10
        (score,) = client.score([b"one"])
        assert isinstance(score.error, InferenceFailed)
        assert score.error.code == "SERVER_BUSY"


def test_a_bad_image_is_not_sent_twice() -> None:
    with _two() as (first, second, url), Client(url) as client:
        (score,) = client.score([b"BAD"])
        assert score.error is not None
        assert len(first.seen + second.seen) == 1


def test_when_none_answers_the_first_is_named() -> None:
    first = _nobody()
    with Client(f"{first},{_nobody()}", retry=ONCE) as client, pytest.raises(ServerUnavailable, match=first):
        client.score([b"one"])


def test_servers_with_other_heads_are_refused() -> None:
    with _two() as (_, second, url), Client(url) as client:
        second.heads = {"other": demo_parameters()}
        with pytest.raises(ClipsieveError, match=r"do not serve the same image_score: demo, .*; other, "):
            client.heads()


def test_health_is_of_the_worst() -> None:
    with _two() as (first, _, url), Client(url) as client:
        assert client.health().status == "ok"
        first.ready = False
        health = client.health()
        assert health.status == "not_ready"
        assert "still loading" in health.message
        assert url.split(",")[1] in health.message


def test_the_commands_take_several(tmp_path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(f"picture {number}".encode())
    with _two() as (first, second, url):
        scored = run_cli("score", tmp_path, "--url", url, "--concurrency", 1)
        assert scored.exit_code == 0
        assert scored.stdout.count("\n") == 5
        assert len(first.seen + second.seen) == 4
        assert "demo" in run_cli("heads", "--url", url).stdout
        assert run_cli("health", "--url", url).exit_code == 0


@pytest.mark.parametrize("url", ["localhost:8001,", ",localhost:8001", "a:1,,b:2"])
def test_a_missing_name_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="names no server between two commas, or at an end"):
        Client(url)
