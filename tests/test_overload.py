"""Queue limits and priorities on the real tritonserver, with a slow encoder of known pace in place of the demo's."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
from pictures import jpeg
from unproved import UnprovedServer

from benchmarks.offered_load import Answer, closed_loop, connect, counts, open_loop, percentile_ms, score_request
from benchmarks.overload import Overload, interactive, overload, recovered_after
from build.repository import install
from recipes.schema import Recipe, Serving
from serving.embedded import EmbeddedServer

SECONDS_AN_IMAGE = 0.02
SLOW_ENCODER = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        sizes = [len(pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()) for request in requests]
        time.sleep({SECONDS_AN_IMAGE} * sum(sizes))
        embeddings = [pb_utils.Tensor("embedding", np.ones((size, 128), np.float32)) for size in sizes]
        return [pb_utils.InferenceResponse(output_tensors=[embedding]) for embedding in embeddings]
"""


def slow_repository(demo: Recipe, target: Path) -> Path:
    """The demo in small batches, and with an encoder that takes its time."""
    serving = demo.serving.model_copy(update={"max_batch_size": 8, "encoder_instances": 1})
    install(demo.model_copy(update={"serving": serving}), target)
    (target / "clip_encoder/1/model.onnx").unlink()
    (target / "clip_encoder/1/model.py").write_text(SLOW_ENCODER)
    with (target / "clip_encoder/config.pbtxt").open("a") as config:
        config.write('backend: "python"\n')
    return target


@pytest.fixture(scope="module")
def slow(demo: Recipe, repository: Path, tmp_path_factory) -> Iterator[EmbeddedServer]:
    """50 images a second, at most."""
    folder = tmp_path_factory.mktemp("slow")
    models, log = slow_repository(demo, folder / "models"), folder / "tritonserver.log"
    with UnprovedServer(models, http_port=0, grpc_port=0, metrics_port=0, log_path=log) as server:
        yield server


def run(server: EmbeddedServer, work, deadline_s: float = 20.0):
    """Await `work(caller)` with a connection to the server."""

    async def connected():
        async with connect(server.grpc_url, deadline_s) as caller:
            return await work(caller)

    return asyncio.run(connected())


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


def test_ten_times_the_capacity_is_scored_or_refused_and_never_left(slow):
    result: Overload = run(slow, lambda caller: overload(caller, jpeg(64, 64), factor=10, seconds=3))
    assert set(result.statuses) == {"OK", "UNAVAILABLE"}
    assert result.statuses["UNAVAILABLE"] > result.statuses["OK"]
    assert result.goodput_ratio > 0.5  # loose bounds: the load comes from this machine as well
    assert result.refused_p50_ms < 2000
    assert result.first_score_s is not None


def test_bulk_work_neither_delays_interactive_requests_nor_has_them_refused(slow, request_of):
    async def both(caller):
        flood = asyncio.create_task(open_loop(caller, request_of(priority=2), 120, 2))
        await asyncio.sleep(0.8)
        return await open_loop(caller, request_of(), 5, 1), await flood

    asked, bulk = run(slow, both)
    assert counts(asked) == {"OK": len(asked)}
    assert 2 * percentile_ms(asked, 50) < percentile_ms(bulk, 50)


@pytest.mark.parametrize("priority", [0, 3])
def test_other_priorities_are_interactive(slow, request_of, priority):
    async def beside_bulk(caller):
        flood = asyncio.create_task(open_loop(caller, request_of(priority=2), 100, 0.6))
        await asyncio.sleep(0.5)
        return await caller(request_of(priority=priority)), await flood

    asked, bulk = run(slow, beside_bulk)
    assert asked.status == "OK"
    assert 1000 * asked.seconds < percentile_ms(bulk, 95)


def test_a_request_may_shorten_its_own_wait(slow, request_of):
    async def impatient(caller):
        work = asyncio.create_task(open_loop(caller, request_of(), 1000, 0.015))
        await asyncio.sleep(0.05)
        return await caller(request_of(timeout_us=20_000)), await work

    asked, work = run(slow, impatient)
    assert asked.status == "UNAVAILABLE"
    assert counts(work) == {"OK": len(work)}


def test_what_nobody_waits_for_any_more_is_not_run(slow, request_of):
    before = encoded_images(slow)
    answers = run(slow, lambda caller: open_loop(caller, request_of(), 2000, 0.03), deadline_s=0.1)
    gone = counts(answers)["DEADLINE_EXCEEDED"]
    assert gone > 0
    time.sleep(1)
    assert encoded_images(slow) - before < len(answers)


def test_refusals_over_http_are_503(slow, request_of):
    def post(parameters: dict) -> int:
        data = [base64.b64encode(jpeg(64, 64)).decode()]
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": data}]
        body = json.dumps({"parameters": parameters, "inputs": inputs}).encode()
        try:
            with urllib.request.urlopen(f"http://{slow.http_url}/v2/models/image_score/infer", body, 30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def beside_load(caller):
        flood = asyncio.create_task(open_loop(caller, request_of(), 200, 1.0))
        await asyncio.sleep(0.7)
        found = await asyncio.gather(*(asyncio.to_thread(post, {"priority": 1, "timeout": 50_000}) for _ in range(8)))
        await flood
        return found

    assert post({"priority": 2}) == 200
    found = run(slow, beside_load)
    assert 503 in found
    assert set(found) <= {200, 503}


def test_interactive_rows_name_what_ran_beside(slow):
    rows = run(slow, lambda caller: interactive(caller, jpeg(64, 64), capacity=40, seconds=1))
    assert [row.beside for row in rows] == ["nothing", "bulk", "unmarked bulk"]
    assert set(rows[0].statuses) == set(rows[1].statuses) == {"OK"}


def test_every_instance_is_warm_before_the_first_request(repository, tmp_path):
    log = tmp_path / "tritonserver.log"
    with EmbeddedServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=log) as server:
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
