"""Queue limits and priorities on the real tritonserver, with a slow encoder that can be held in place of the demo's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from pictures import jpeg
from unproved import UnprovedServer
from waiting import PATIENCE_S, until

from benchmarks.offered_load import Answer, Caller, closed_loop, connect, counts, score_request
from build.repository import install
from recipes.schema import Recipe
from recipes.serving_section import Serving
from serving.embedded import EmbeddedServer, ServerSettings
from serving.supervisor import work_from_metrics
from trials.overload import Overload, interactive, overload, recovered_after

SECONDS_AN_IMAGE = 0.02
SLOW_ENCODER = f"""
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, arguments):
        self.held = os.path.join(arguments["model_repository"], "held")

    def execute(self, requests):
        sizes = [len(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()) for request in requests]
        time.sleep({SECONDS_AN_IMAGE} * sum(sizes))
        while os.path.exists(self.held):
            time.sleep(0.005)
        embeddings = [pb_utils.Tensor("embedding", np.ones((size, 128), np.float32)) for size in sizes]
        return [pb_utils.InferenceResponse(output_tensors=[embedding]) for embedding in embeddings]
"""


def slow_repository(demo: Recipe, target: Path) -> Path:
    """The demo in small batches and with patient queues, and with an encoder that takes its time or is held."""
    patient = {"max_batch_size": 8, "encoder_instances": 1, "queue_timeout_ms": 1000 * int(PATIENCE_S)}
    install(demo.model_copy(update={"serving": demo.serving.model_copy(update=patient)}), target)
    (target / "clip_encoder/1/model.onnx").unlink()
    (target / "clip_encoder/1/model.py").write_text(SLOW_ENCODER)
    with (target / "clip_encoder/config.pbtxt").open("a") as config:
        config.write('backend: "python"\n')
    return target


@pytest.fixture(scope="module")
def slow(demo: Recipe, repository: Path, tmp_path_factory) -> Iterator[EmbeddedServer]:
    """A server of at most 50 images a second."""
    folder = tmp_path_factory.mktemp("slow")
    models, log = slow_repository(demo, folder / "models"), folder / "tritonserver.log"
    with UnprovedServer(models, ServerSettings.on_free_ports(log)) as server:
        yield server


@contextlib.contextmanager
def held_encoder(server: EmbeddedServer) -> Iterator[None]:
    """Hold the encoder: a batch that it has begun ends with the block, and the next begins."""
    held = server.repository / "clip_encoder" / "held"
    held.touch()
    try:
        yield
    finally:
        held.unlink()


async def waiting(server: EmbeddedServer, count: int) -> None:
    """Wait until so many requests wait for the encoder, beside the one or more that it has begun."""

    def are_waiting() -> bool:
        with urllib.request.urlopen(server.metrics_url) as response:
            return work_from_metrics(response.read().decode()).waiting["clip_encoder"] >= count

    await asyncio.to_thread(until, are_waiting, f"a queue of {count} requests")


def run(server: EmbeddedServer, work, deadline_s: float = PATIENCE_S):
    """Await `work(caller)` with a connection to the server."""

    async def connected():
        async with connect(server.grpc_url, deadline_s) as caller:
            return await work(caller)

    return asyncio.run(connected())


def sent(caller: Caller, request: bytes, count: int) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(caller(request)) for _ in range(count)]


def encoded_images(server: EmbeddedServer) -> int:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("clip_encoder")
    assert statistics is not None
    return statistics.model_stats[0].inference_count


@pytest.fixture
def request_of():
    """A request for a small picture: the encoder is what is slow."""
    picture = jpeg(64, 64)
    return lambda **parameters: score_request(picture, **parameters)


def test_more_than_is_carried_is_scored_or_refused_and_never_left(slow):
    result: Overload = run(slow, lambda caller: overload(caller, jpeg(64, 64), factor=10, seconds=1))
    assert set(result.statuses) <= {"OK", "UNAVAILABLE"}
    assert result.statuses["OK"]
    assert sum(result.statuses.values()) == result.offered


def test_what_waits_for_too_long_is_refused_and_what_has_begun_is_scored(slow, request_of):
    async def crowd(caller):
        with held_encoder(slow):
            first = sent(caller, request_of(), 1)
            others = sent(caller, request_of(timeout_us=50_000), 100)
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)  # by a refusal: the encoder is held
        return await asyncio.gather(*first), await asyncio.gather(*others)

    first, others = run(slow, crowd)
    assert counts(first) == {"OK": 1}
    assert counts(others)["UNAVAILABLE"]
    assert set(counts(others)) <= {"OK", "UNAVAILABLE"}


@pytest.mark.parametrize("priority", [None, 0, 1, 3])
def test_bulk_work_neither_delays_interactive_requests_nor_has_them_refused(slow, request_of, priority):
    """A request without a priority is interactive, and so is any priority but 2."""

    async def both(caller):
        with held_encoder(slow):
            bulk = sent(caller, request_of(priority=2), 60)
            await waiting(slow, 40)
            interactive = sent(caller, request_of(priority=priority), 4)
            await waiting(slow, 60 - 8 + 4)
        return await asyncio.gather(*interactive), await asyncio.gather(*bulk)

    interactive, bulk = run(slow, both)
    assert counts(interactive) == {"OK": 4}
    assert counts(bulk) == {"OK": 60}
    last = max(answer.end_s for answer in interactive)
    sooner = sum(answer.end_s < last for answer in bulk)
    assert sooner <= 24  # a batch that had begun, those that share the next, and one whose answers overtook


def test_a_request_may_shorten_its_own_wait(slow, request_of):
    async def impatient(caller):
        with held_encoder(slow):
            work = sent(caller, request_of(), 12)
            await waiting(slow, 4)
            (one,) = sent(caller, request_of(timeout_us=20_000), 1)
            await waiting(slow, 5)
            await asyncio.sleep(0.1)  # longer than it waits
        return await one, await asyncio.gather(*work)

    one, work = run(slow, impatient)
    assert one.status == "UNAVAILABLE"
    assert counts(work) == {"OK": len(work)}


def test_what_nobody_waits_for_any_more_is_not_run(slow, request_of):
    """Triton looks between the steps of an ensemble: of requests that are given up at once some are not encoded."""

    async def abandoned(caller):
        async with connect(slow.grpc_url, 0.002) as hasty:
            with held_encoder(slow):
                answers = await asyncio.gather(*sent(hasty, request_of(), 100))
        return await asyncio.gather(*sent(caller, request_of(), 1)), answers  # the one waits behind all others

    before = encoded_images(slow)
    others, answers = run(slow, abandoned)
    assert counts(answers) == {"DEADLINE_EXCEEDED": len(answers)}
    assert counts(others) == {"OK": 1}
    assert encoded_images(slow) - before < len(answers)


def test_refusals_over_http_are_503(slow, request_of):
    def post(parameters: dict) -> int:
        data = [base64.b64encode(jpeg(64, 64)).decode()]
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": data}]
        body = json.dumps({"parameters": parameters, "inputs": inputs}).encode()
        try:
            with urllib.request.urlopen(f"http://{slow.http_url}/v2/models/image_score/infer", body) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def beside_load(caller):
        with held_encoder(slow):
            work = sent(caller, request_of(), 12)
            await waiting(slow, 4)
            one = asyncio.create_task(asyncio.to_thread(post, {"priority": 1, "timeout": 20_000}))
            await waiting(slow, 5)
            await asyncio.sleep(0.1)  # longer than it waits
        await asyncio.gather(*work)
        return await one

    assert post({"priority": 2}) == 200
    assert run(slow, beside_load) == 503


def test_interactive_rows_name_what_ran_beside(slow):
    rows = run(slow, lambda caller: interactive(caller, jpeg(64, 64), capacity=40, seconds=1))
    assert [row.beside for row in rows] == ["nothing", "bulk", "unmarked bulk"]
    assert set(rows[0].statuses) == set(rows[1].statuses) == {"OK"}


def test_every_instance_is_warm_before_the_first_request(repository, tmp_path):
    log = tmp_path / "tritonserver.log"
    with EmbeddedServer(repository, ServerSettings.on_free_ports(log)) as server:
        encoded = encoded_images(server)
    assert encoded > 1 + Serving().max_batch_size  # one, a full batch, and the probe's


def test_recovery_counts_from_the_end_to_the_first_of_only_good_answers():
    after = [
        Answer(10.0, 0.1, "UNAVAILABLE"),
        Answer(10.5, 0.9, "OK"),
        Answer(11.0, 0.2, "OK"),
        Answer(11.5, 0.2, "OK"),
    ]
    assert recovered_after(after, end_s=10.0, limit_s=0.3) == pytest.approx(1.2)
    assert recovered_after(after, end_s=10.0, limit_s=0.1) is None
    assert recovered_after(after[2:], end_s=11.0, limit_s=0.3) == pytest.approx(0.2)


def test_a_closed_loop_keeps_so_many_under_way(slow, request_of):
    answers = run(slow, lambda caller: closed_loop(caller, request_of(), 2, 0.5))
    assert counts(answers) == {"OK": len(answers)}
