"""Several images in one request: each still fails alone, and requests fill only when images are waiting."""

from __future__ import annotations

import asyncio
import re
import threading

import grpc
import numpy as np
import pytest
from fakes import SERVE, Failure, FakeModel, fake_score
from waiting import PATIENCE_S

from clipsieve import Client, ImageRejected, InferenceFailed, Retry, ServerUnavailable
from clipsieve.groups import answers_for
from clipsieve.images import encoded_some
from clipsieve.pump import pump_groups


class Model:
    """Answers with each image's bytes as a number; `requests` has what was sent."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.requests: list[list[bytes]] = []
        self.failure = failure

    async def __call__(self, images):
        self.requests.append(list(images))
        if self.failure is not None and len(images) > 1:
            raise self.failure
        for place, image in enumerate(images):
            if image.startswith(b"bad"):
                raise ImageRejected("NOT_AN_IMAGE", image.decode(), place)
        return {"score": np.array([[float(image)] for image in images], np.float32)}


def _answers(files, model):
    answers = asyncio.run(answers_for(files, model))
    return [str(answer) if isinstance(answer, Exception) else float(answer["score"][0, 0]) for answer in answers]


def test_each_image_has_its_own_row_of_the_answer():
    model = Model()
    assert _answers([b"1", b"2", b"3"], model) == [1, 2, 3]
    assert model.requests == [[b"1", b"2", b"3"]]


def test_rows_keep_their_batch_dimension():
    (answer, _) = asyncio.run(answers_for([b"1", b"2"], Model()))
    assert isinstance(answer, dict)
    assert answer["score"].shape == (1, 1)


def test_rejected_image_fails_alone_and_is_not_sent_twice():
    model = Model()
    assert _answers([b"1", b"bad a", b"3", b"bad b"], model) == [1, "NOT_AN_IMAGE: bad a", 3, "NOT_AN_IMAGE: bad b"]
    assert model.requests == [[b"1", b"bad a", b"3", b"bad b"], [b"1", b"3", b"bad b"], [b"1", b"3"]]


def test_group_of_bad_images():
    assert _answers([b"bad"] * 4, Model()) == ["NOT_AN_IMAGE: bad"] * 4


@pytest.mark.parametrize(
    "failure",
    [InferenceFailed("DEADLINE_EXCEEDED", "late"), InferenceFailed("INTERNAL", "?"), ImageRejected("X", "beyond", 7)],
)
def test_failure_of_no_image_in_particular_is_tried_one_by_one(failure):
    model = Model(failure)
    assert _answers([b"1", b"2", b"bad"], model) == [1, 2, "NOT_AN_IMAGE: bad"]
    assert model.requests[1:] == [[b"1"], [b"2"], [b"bad"]]


def test_what_is_known_to_be_no_image_is_not_sent():
    model = Model()
    assert _answers([ImageRejected("UNREADABLE", "gone"), b"2"], model) == ["UNREADABLE: gone", 2]
    assert _answers([ImageRejected("UNREADABLE", "gone")], model) == ["UNREADABLE: gone"]
    assert model.requests == [[b"2"]]


def test_answer_with_too_few_rows_is_no_score():
    async def short(images):
        return {"score": np.zeros((1, 1), np.float32)}

    answers = _answers([b"1", b"2"], short)
    assert answers == [0, 0]  # each alone has its one row

    async def always_two(images):
        return {"score": np.zeros((2, 1), np.float32)}

    assert _answers([b"1"], always_two) == ["BAD_RESPONSE: the server answered 2 rows of score for 1 images"]


def test_a_server_that_is_gone_is_no_answer():
    async def gone(images):
        raise ServerUnavailable("gone")

    with pytest.raises(ServerUnavailable):
        _answers([b"1", b"2"], gone)


def test_reading_stops_at_the_bytes_of_a_request(tmp_path):
    images = [b"x" * 40, b"x" * 70, tmp_path / "none", b"x" * 10]
    assert encoded_some(images, 100) == images[:2]
    assert encoded_some(images[:1] * 9, 1) == images[:1]
    (error, last) = encoded_some(images[2:], 100)
    assert isinstance(error, ImageRejected)
    assert last == images[3]


class Drawn:
    """An iterator that knows how many were drawn from it."""

    def __init__(self, items):
        self.items, self.count = iter(items), 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self.items)
        self.count += 1
        return item


def _group_sizes(items, in_flight, most):
    """Each call takes until the next items have been drawn, however slow the thread that does is."""
    sizes = []

    async def call(group):
        sizes.append(len(group))
        ahead = sum(sizes) + in_flight // 2
        while isinstance(items, Drawn) and items.count < min(ahead, 500):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        return group

    async def run():
        return [each async for each in pump_groups(call, items, in_flight, most)]

    return asyncio.run(run()), sizes


def test_few_items_go_alone():
    assert _group_sizes(range(3), 32, 4) == (list(range(3)), [1] * 3)


@pytest.mark.parametrize("source", [list, Drawn])
def test_many_items_share_calls_and_the_last_go_alone(source):
    results, sizes = _group_sizes(source(range(500)), 16, 4)
    assert results == list(range(500))
    assert max(sizes) == 4
    assert sizes[-1] == 1
    assert len(sizes) < 300


def test_items_in_flight_are_counted_not_calls():
    running = most = 0

    async def call(group):
        nonlocal running, most
        running += len(group)
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= len(group)
        return group

    async def run():
        return [each async for each in pump_groups(call, range(400), 18, 4)]

    assert asyncio.run(run()) == list(range(400))
    assert 12 < most <= 18


def test_a_call_never_waits_for_items_to_come():
    release = threading.Event()

    def slowly():
        yield 1
        release.wait(PATIENCE_S)
        yield 2

    async def call(group):
        return group

    async def run():
        results = pump_groups(call, slowly(), 4, 4)
        first = await asyncio.wait_for(anext(results), PATIENCE_S / 2)
        release.set()
        return [first, *[result async for result in results]]

    assert asyncio.run(run()) == [1, 2]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client_groups_small_images_and_costs_nobody_a_row(protocol):
    model = FakeModel()
    images = [b"BAD" if number % 10 == 7 else b"%d" % number for number in range(200)]
    with SERVE[protocol](model) as url, Client(url, protocol, timeout_s=PATIENCE_S) as client:
        scores = client.score(images)
        embeddings = client.embed(images)
    for image, score, embedding in zip(images, scores, embeddings, strict=True):
        if image == b"BAD":
            assert score.error is not None
            assert score.error.code == "NOT_AN_IMAGE"
            assert embedding.error is not None
        else:
            assert score.scores[0] == fake_score(image)
            assert embedding.vector[0] == fake_score(image)
    assert max(model.sizes) == 4


def test_large_images_and_a_server_without_batches_get_requests_of_their_own():
    model = FakeModel()
    with SERVE["grpc"](model) as url, Client(url, timeout_s=PATIENCE_S) as client:
        client.score([b"%d" % number + bytes(1 << 20) for number in range(40)])
        assert max(model.sizes) == 1
        client.score([b"%d" % number for number in range(100)])
        assert max(model.sizes) == 4
    alone = FakeModel(max_batch_size=1)
    with SERVE["grpc"](alone) as url, Client(url, timeout_s=PATIENCE_S) as client:
        assert all(score.ok for score in client.score([b"%d" % number for number in range(100)]))


def test_images_of_a_failed_request_are_scored_alone():
    model = FakeModel()
    with (
        SERVE["grpc"](model) as url,
        Client(url, timeout_s=PATIENCE_S, concurrency=8, retry=Retry(attempts=1)) as client,
    ):
        client.heads()
        model.fail_next = [Failure(grpc.StatusCode.INTERNAL, "once")]
        scores = client.score([b"%d" % number for number in range(64)])
    assert model.sizes[0] == 2  # of 8 in flight
    assert all(score.ok for score in scores)


def test_no_images_per_request_is_refused():
    with pytest.raises(ValueError, match=re.escape("images_per_request must be >= 1, found 0")):
        Client(images_per_request=0)
