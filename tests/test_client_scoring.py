"""The library against a small server in this process, over both protocols."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import grpc
import numpy as np
import pytest
from waiting import PATIENCE_S

from clipsieve import AsyncClient, Client, ImageRejected, InferenceFailed, Retry, ServerUnavailable, UnknownHead
from clipsieve.grpc_transport import _message, service_pb2
from clipsieve.transport import Request, image_tensor, parse_url
from tests.fakes import EMBED_DIM, REVISION, SERVE, Failure, FakeModel, demo_parameters, fake_embedding, fake_score

FAST = Retry(initial_backoff_s=0.01, max_backoff_s=0.05)
BUSY = Failure(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
STOPPING = Failure(grpc.StatusCode.UNAVAILABLE, "Server is stopping")


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def url(model, protocol):
    with SERVE[protocol](model) as url:
        yield url


@pytest.fixture
def client(url, protocol):
    with Client(url, protocol, timeout_s=PATIENCE_S, concurrency=8, retry=FAST) as client:
        yield client


def _code(result):
    """The error's code; fails if there is no error."""
    assert result.error is not None
    assert not result.ok
    return result.error.code


def test_scores_bytes_and_paths_in_order(client, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"from a file")
    images = [b"one", tmp_path / "a.jpg", str(tmp_path / "a.jpg"), bytearray(b"two"), memoryview(b"three")]
    scores = client.score(images)
    contents = [b"one", b"from a file", b"from a file", b"two", b"three"]
    assert [score.scores[0] for score in scores] == [fake_score(content) for content in contents]
    assert [score.path for score in scores] == [None, str(tmp_path / "a.jpg"), str(tmp_path / "a.jpg"), None, None]
    assert all(score.ok for score in scores)


def test_score_has_the_contract_types(client):
    (score,) = client.score([b"one"])
    assert (score.scores.shape, score.scores.dtype) == ((1,), np.float32)
    assert (score.decisions.shape, score.decisions.dtype) == ((1,), np.int32)
    assert score.model_version == f"demo-{REVISION:016x}"


def test_bad_images_cost_their_own_row_only(client, tmp_path):
    scores = client.score([b"one", b"BAD", b"", tmp_path, tmp_path / "missing", b"two"])
    assert [score.error.code if score.error else None for score in scores] == [
        None,
        "NOT_AN_IMAGE",
        "EMPTY",
        "UNREADABLE",
        "UNREADABLE",
        None,
    ]
    assert scores[1].error.message == "not a format, or one not allowed; a, b"
    assert all(isinstance(score.error, ImageRejected) for score in scores[1:5])
    assert scores[1].scores.size == 0


def test_what_is_no_image_source_is_a_type_error(client):
    with pytest.raises(TypeError, match="found int"):
        client.score([3])


@pytest.mark.parametrize("one", ["a.jpg", b"image"])
def test_one_image_where_many_should_be_is_a_type_error(client, one):
    for method in (client.score, client.embed):
        with pytest.raises(TypeError, match="expected many of them, such as a list, found one"):
            method(one)


def test_many_images_keep_their_order_and_the_limit(client, model):
    model.delay_s = 0.002
    images = [str(number).encode() for number in range(200)]
    assert [score.scores[0] for score in client.score(images)] == [fake_score(image) for image in images]
    assert model.most_at_once <= 8


def test_stream_draws_images_as_it_goes(client, model):
    model.delay_s = 0.001
    drawn = 0

    def images():
        nonlocal drawn
        for drawn in range(1, 10_001):
            yield str(drawn).encode()

    stream = client.score_stream(images())
    assert next(stream).ok
    stream.close()
    assert drawn <= 8 * 4 + 8 + 3


def test_stub_that_dies_is_an_error_of_each_image(client, model):
    model.stub_dead = True
    (score,) = client.score([b"one"])
    assert isinstance(score.error, InferenceFailed)
    assert _code(score) == "INTERNAL"
    assert "not healthy" in score.error.message


def test_stub_that_dies_is_waited_for_when_there_is_time(url, protocol, model, caplog):
    model.stub_dead = True

    def restart():
        model.stub_dead = False

    threading.Timer(0.3, restart).start()
    with Client(url, protocol, wait_s=20, concurrency=4) as client:
        assert all(score.ok for score in client.score([b"a", b"b"]))
    assert "a process of the server has died" in caplog.text


def test_stub_that_stays_dead_ends_the_run(url, protocol, model, caplog):
    model.stub_dead = True
    with Client(url, protocol, wait_s=0.6) as client, pytest.raises(ServerUnavailable, match="is not healthy"):
        client.score([b"a"])


def test_nan_is_no_score(client, model):
    model.not_a_number = True
    (score,) = client.score([b"one"])
    assert _code(score) == "NOT_FINITE"


def test_deadline_is_an_error_of_that_image(url, protocol, model):
    model.held = b"slow"
    with Client(url, protocol, timeout_s=3) as client:
        client.heads()
        slow, quick = client.score([b"slow", b"quick"])
    assert _code(slow) == "DEADLINE_EXCEEDED"
    assert quick.ok


@pytest.mark.parametrize("failure", [BUSY, STOPPING], ids=["busy", "stopping"])
@pytest.mark.parametrize("size", [10, 1_500_000], ids=["small", "larger than gRPC's retry buffer"])
def test_unavailable_is_tried_again(client, model, failure, size):
    model.fail_next = [failure] * 3
    (score,) = client.score([b"x" * size])
    assert score.ok
    assert len(model.seen) == 4


def test_internal_error_is_not_tried_again(client, model):
    model.fail_next = [Failure(grpc.StatusCode.INTERNAL, "no")]
    assert not client.score([b"one"])[0].ok
    assert len(model.seen) == 1


def test_busy_to_the_end_is_an_error_of_that_image(client, model):
    model.fail_next = [BUSY] * 5
    (score,) = client.score([b"one"])
    assert _code(score) == "SERVER_BUSY"


def test_retries_can_be_turned_off(url, protocol, model):
    model.fail_next = [BUSY]
    with Client(url, protocol, retry=Retry(attempts=1)) as client:
        assert _code(client.score([b"one"])[0]) == "SERVER_BUSY"


def test_server_that_goes_away_raises_after_the_results_so_far(client, model):
    model.dead_after = 20
    scores = []
    with pytest.raises(ServerUnavailable, match="Server is stopping"):
        scores.extend(client.score_stream(str(number).encode() for number in range(1000)))
    assert 0 < len(scores) <= 20
    assert all(score.ok for score in scores)
    assert len(model.seen) < 300


def test_refused_connection_is_known_before_any_deadline(refusing_url, protocol):
    with Client(refusing_url, protocol, timeout_s=10 * PATIENCE_S) as client:
        with pytest.raises(ServerUnavailable, match=f"no answer from {refusing_url}"):
            client.score([b"one"])
        assert client.health().status == "unavailable"


@pytest.fixture
def silent_url():
    with socket.create_server(("localhost", 0)) as silent:
        yield f"localhost:{silent.getsockname()[1]}"


def test_server_that_never_answers_is_unavailable(silent_url, protocol):
    with Client(silent_url, protocol, timeout_s=0.2) as client:
        with pytest.raises(ServerUnavailable):
            client.heads()
        assert client.health(timeout_s=0.2).status == "unavailable"


def test_priority_goes_with_each_request(url, protocol, model):
    with Client(url, protocol) as client:
        client.score([b"a"])
        assert model.priorities == {1}
        client.score([b"a", b"b"])
        assert model.priorities == {1, 2}
    model.priorities.clear()
    with Client(url, protocol, priority="bulk") as client:
        client.score([b"a"])
    assert model.priorities == {2}


def test_large_image_passes(client):
    image = b"\xff" * 40_000_000
    assert client.score([image])[0].scores[0] == fake_score(image)


def test_image_too_large_is_not_sent(client, model, monkeypatch):
    monkeypatch.setattr("clipsieve.images.MAX_IMAGE_BYTES", 4)
    assert _code(client.score([b"12345"])[0]) == "TOO_MANY_BYTES"
    assert model.seen == []


def test_heads_come_from_the_server(client, model):
    model.heads = {"demo": demo_parameters(notice="A demo."), "other": {"labels": json.dumps(["a", "b"])}}
    demo, other = client.heads()
    assert (demo.name, demo.labels, demo.class_names, demo.notice) == ("demo", ("ring",), ("disc", "ring"), "A demo.")
    assert (other.name, other.labels, other.class_names, other.notice) == ("other", ("a", "b"), (), None)


def test_all_heads_score_in_one_request(client, model):
    model.heads = {"demo": demo_parameters(), "other": demo_parameters()}
    (score,) = client.score([b"one"])
    assert list(score.heads) == ["demo", "other"]
    assert score.model_version == f"demo-{REVISION:016x} other-{REVISION:016x}"
    assert score.heads["other"].scores == fake_score(b"one")
    assert score.heads["other"].class_name == ("ring" if fake_score(b"one") >= 0.25 else "disc")
    assert model.seen == [b"one"]
    with pytest.raises(ValueError, match="scored by demo, other: take one of them from `heads`"):
        _ = score.scores


def test_heads_are_chosen_by_name(client, model):
    model.heads = {"demo": demo_parameters(), "other": demo_parameters()}
    assert list(client.score([b"one"], heads="other")[0].heads) == ["other"]
    assert list(client.score([b"one"], heads=["other", "demo", "other"])[0].heads) == ["other", "demo"]
    with pytest.raises(UnknownHead, match="no head 'third'; this server has: demo, other"):
        client.score([b"one"], heads=["demo", "third"])


def test_server_that_comes_back_is_waited_for(url, protocol, model, caplog):
    model.fail_next = [STOPPING] * 12
    with Client(url, protocol, wait_s=120, retry=Retry(attempts=1), concurrency=4) as client:
        scores = client.score([str(number).encode() for number in range(50)])
    assert [score.scores[0] for score in scores] == [fake_score(str(number).encode()) for number in range(50)]
    assert [record.message for record in caplog.records if "waiting for the server up to 120 s" in record.message]
    assert "the server is back after" in caplog.text


def test_server_that_is_busy_for_long_is_waited_for(url, protocol, model):
    model.fail_next = [BUSY] * 12
    with Client(url, protocol, wait_s=120, retry=Retry(attempts=1), concurrency=4) as client:
        assert all(score.ok for score in client.score([b"one"] * 8))


def test_server_that_stays_away_is_not_waited_for_any_longer(url, protocol, model, caplog):
    model.dead_after = 3
    with (
        Client(url, protocol, wait_s=1, retry=Retry(attempts=1)) as client,
        pytest.raises(ServerUnavailable, match="Server is stopping"),
    ):
        client.score([b"one"] * 20)
    assert "waiting for the server up to 1 s" in caplog.text
    assert "the server is back" not in caplog.text


def test_embeddings_of_another_length_are_refused(client):
    for array, message in [
        (np.zeros((2, 3), np.float32), r"must be \(N, 8\), found \(2, 3\)"),
        (np.zeros(8, np.float32), r"found \(8,\)"),
        (np.full((2, EMBED_DIM), np.nan, np.float32), "2 of the embeddings are not finite, the first is row 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            client.score_embeddings("demo", array)


def test_embeds(client):
    good, bad = client.embed([b"one", b"BAD"])
    np.testing.assert_array_equal(good.vector, fake_embedding(b"one"))
    assert good.vector.shape == (EMBED_DIM,)
    assert _code(bad) == "NOT_AN_IMAGE"
    assert [embedding.ok for embedding in client.embed_stream([b"one", b"BAD"])] == [True, False]


def test_health_scores_a_real_image(client, model):
    health = client.health()
    assert health.ok
    assert "scored an image with demo" in health.message
    assert model.seen[0].startswith(b"\x89PNG")


def test_health_notices_a_dead_stub_behind_a_ready_server(client, model):
    model.stub_dead = True
    health = client.health()
    assert (health.status, health.ok) == ("failing", False)
    assert "INTERNAL" in health.message
    assert client.health(deep=False).ok


def test_health_notices_a_server_that_hangs(client, model):
    client.heads()
    model.held = b""
    health = client.health(timeout_s=2)
    assert health.status == "failing"
    assert "DEADLINE_EXCEEDED" in health.message


def test_health_of_a_server_that_is_loading(client, model):
    model.ready = False
    assert client.health().status == "not_ready"


def test_async_client_has_the_same_methods(url, protocol):
    async def run():
        async with AsyncClient(url, protocol) as client:
            scores = await client.score([b"one", b"BAD"])
            streamed = [score async for score in client.score_stream([b"one"])]
            return scores + streamed, await client.embed([b"one"]), await client.heads(), await client.health()

    scores, embeddings, heads, health = asyncio.run(run())
    assert [score.ok for score in scores] == [True, False, True]
    assert embeddings[0].ok
    assert heads[0].name == "demo"
    assert health.ok


def test_client_is_shared_between_threads(client):
    results = {}

    def work(number):
        results[number] = client.score([str(number).encode()] * 20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert {score.scores[0] for score in results[number]} == {fake_score(str(number).encode())}


def test_closed_client_says_so(url, protocol):
    client = Client(url, protocol)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.heads()


def test_stream_may_outlive_its_client(url, protocol):
    with Client(url, protocol) as client:
        stream = client.score_stream([b"one", b"two"])
        assert next(stream).ok
    stream.close()


@pytest.mark.parametrize(
    ("protocol", "url", "expected"),
    [
        (None, None, ("grpc", "localhost:8001", False)),
        ("http", None, ("http", "localhost:8000", False)),
        ("grpc", "gpu:1", ("grpc", "gpu:1", False)),
        (None, "grpcs://gpu:443", ("grpc", "gpu:443", True)),
        (None, "http://gpu:1/", ("http", "gpu:1", False)),
        ("http", "https://gpu/triton", ("http", "gpu/triton", True)),
        (None, "HTTP://gpu:1", ("http", "gpu:1", False)),
        (None, "grpc://[::1]:9001", ("grpc", "[::1]:9001", False)),
        (None, " gpu:1\n", ("grpc", "gpu:1", False)),
    ],
)
def test_url_forms(protocol, url, expected):
    assert parse_url(url, protocol) == expected


@pytest.mark.parametrize(
    ("protocol", "url", "message"),
    [
        ("grpc", "http://gpu:1", "is for http, but protocol is grpc"),
        (None, "ftp://gpu", "https://"),
        ("tcp", None, "grpc or http"),
        (None, "grpc://", "names no server"),
        (None, "gpu", "names no port: write gpu:8001, which is a server's own for grpc"),
        ("http", "gpu", "names no port: write gpu:8000"),
        (None, "::1", r"write \[::1\]:8001"),
        (None, "grpc://gpu:1/clip", "gRPC has none: write gpu:1, or http://"),
        (None, "http://gpu:1/v2", "ends in /v2, which the client adds"),
        (None, "http://gpu:1/v2/models/image_score/infer", "ends in /v2, which the client adds"),
        (None, "http://me:secret@gpu:1", "url 'http://…@gpu:1' has a user's name in it"),
    ],
)
def test_url_that_does_not_fit_is_refused(protocol, url, message):
    with pytest.raises(ValueError, match=message):
        Client(url, protocol)


@pytest.mark.parametrize(
    "wrong", [{"timeout_s": 0}, {"concurrency": 0}, {"wait_s": -1}, {"ca_file": "no.pem"}, {"priority": "high"}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"found|no certificate"):
        Client(**wrong)


def test_token_is_not_shown():
    with Client(token="secret", headers={"x-key": "hidden"}) as client:
        assert "secret" not in repr(client)
        assert "hidden" not in repr(client)


@pytest.mark.parametrize("sizes", [(0,), (123,), (124,), (16_379, 3), (16_380,), (70_000,), (3_000_000, 0)])
def test_a_request_over_grpc_is_the_message_that_protobuf_reads(sizes):
    request = Request("image_score", image_tensor(*(b"a" * size for size in sizes)), ["demo"], id="probe")
    message = service_pb2.ModelInferRequest.FromString(_message(request))
    assert (message.model_name, message.id, message.outputs[0].name) == ("image_score", "probe", "demo")
    assert list(message.inputs[0].shape) == [len(sizes), 1]
    assert list(message.raw_input_contents) == [request.tensor.data]
    assert request.tensor.size == sum(sizes) + 4 * len(sizes)
