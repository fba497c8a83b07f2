"""Malformed requests, generated, on the real server: an error or the picture's own score, and a healthy server after.

What is known to end this release of the server is in trials/malformed/known.py and stays away from the shared one.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from clipsieve import Client
from trials.malformed import grpc_requests, http_requests, known
from trials.malformed.wire import Answer, Case, http_answer, open_grpc, problem, send_grpc, send_http

# The same requests every time; no shrinking, which would send hundreds more to a server that may be gone.
FEW = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


@pytest.fixture(scope="module")
def infer(server):
    channel, infer = open_grpc(server.grpc_url)
    yield infer
    channel.close()


@pytest.fixture(scope="module")
def honest_score(infer) -> float:
    (score,) = send_grpc(infer, Case("honest", grpc_requests.message().SerializeToString())).scores
    return score


@pytest.fixture(scope="module", autouse=True)
def healthy_after(server):
    yield
    with Client(server.grpc_url) as client:
        assert client.health().ok
        assert client.score([http_requests.PICTURE])[0].ok


@pytest.mark.parametrize("kind", http_requests.KINDS)
def test_malformed_http_is_never_scored(server, honest_score, kind):
    @FEW
    @given(http_requests.KINDS[kind])
    def check(case: Case) -> None:
        answer = send_http(server.http_url, case)
        assert problem(case, answer, honest_score) is None, case.data[:1000]

    check()


@pytest.mark.parametrize("kind", grpc_requests.KINDS)
def test_malformed_grpc_is_never_scored(infer, honest_score, kind):
    @FEW
    @given(grpc_requests.KINDS[kind])
    def check(case: Case) -> None:
        answer = send_grpc(infer, case)
        assert problem(case, answer, honest_score) is None, case.data[:1000]

    check()


RIGHT_JSON = http_requests.message(http_requests.encode(http_requests.document()))
RIGHT_BINARY = http_requests.with_tail(http_requests.ELEMENT)


@pytest.mark.parametrize("data", [RIGHT_JSON, RIGHT_BINARY], ids=["JSON", "raw bytes"])
def test_what_the_malformed_requests_start_from_is_scored(server, honest_score, data):
    answer = send_http(server.http_url, Case("right", data))
    assert answer.outcome == "scored"
    assert answer.scores == pytest.approx([honest_score], abs=1e-5)


def test_a_zero_batch_harms_no_neighbour(server, infer, honest_score):
    """Triton 2.51 takes a batch size of 0 with one element for one picture; its neighbours keep their scores."""
    zero = Case("zero", grpc_requests.message([0, 1]).SerializeToString(), tolerated=True)
    with Client(server.grpc_url) as client:
        for _ in range(4):
            calls = [infer.future(zero.data, timeout=10) for _ in range(8)]
            scores = client.score([http_requests.PICTURE] * 32)
            assert all(abs(score.scores[0] - honest_score) <= 1e-5 for score in scores)
            assert all(call.result().outputs for call in calls)


def test_an_element_cut_short_fails_alone(server, infer, honest_score):
    """The server fails all requests of a batch together, so preprocess takes one request at a time."""
    cut = grpc_requests.message(raw=[grpc_requests.ELEMENT[:-1]]).SerializeToString()
    with Client(server.grpc_url) as client:
        for _ in range(6):
            calls = [infer.future(cut, timeout=20) for _ in range(8)]
            results = client.score([http_requests.PICTURE] * 32)
            assert all(call.exception() is not None for call in calls)
            assert all(result.ok for result in results), [str(result.error) for result in results if result.error]
            assert all(abs(result.scores[0] - honest_score) <= 1e-5 for result in results)


def test_larger_stacks_hold_what_overflows_the_usual_ones(repository, tmp_path):
    deep = known.Known("200,000 nested brackets", lambda: known.nested(200_000))
    assert known.fate(repository, deep, tmp_path / "log", known.GUARD_STACK_BYTES).answer.outcome == "refused"


# ---- what counts as a problem ----


RIGHT = Case("kind", b"", tolerated=True)
WRONG = Case("kind", b"")


@pytest.mark.parametrize(
    ("case", "answer", "part"),
    [
        (WRONG, Answer("refused", "400"), None),
        (WRONG, Answer("closed", ""), None),
        (WRONG, Answer("scored", "200", (0.5,)), "was answered"),
        (WRONG, Answer("silent", "nothing"), "no answer"),
        (RIGHT, Answer("silent", "nothing"), "no answer"),
        (RIGHT, Answer("scored", "200", (0.5,)), None),
        (RIGHT, Answer("scored", "200", (0.5, 0.7)), "scores [0.7]"),
        (RIGHT, Answer("scored", "200", (float("nan"),)), "scores [nan]"),
    ],
)
def test_problem(case, answer, part):
    description = problem(case, answer, honest_score=0.5)
    assert (description is None) if part is None else (part in (description or ""))


def test_an_http_error_is_a_refusal_with_its_text():
    answer = http_answer(b'HTTP/1.1 400 Bad Request\r\n\r\n{"error":"no"}')
    assert (answer.outcome, answer.detail) == ("refused", 'HTTP/1.1 400 Bad Request: {"error":"no"}')
