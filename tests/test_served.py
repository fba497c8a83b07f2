"""The seams, on the real tritonserver: torch = ONNX = served, gRPC = HTTP, and one bad file harms nobody."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import subprocess
import urllib.error
import urllib.request
from typing import Literal, cast

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from pictures import SVG, encoded, jpeg, noise
from PIL import Image
from tritonclient.utils import InferenceServerException
from waiting import PATIENCE_S, settled, until

from build.tower import load_tower
from clipsieve import Client
from common.manifest import read_head
from common.paths import encoder_folder, head_folder
from common.photos import sample_photos
from common.pixels import served_transform

PROTOCOLS: list[Literal["grpc", "http"]] = ["grpc", "http"]


def urls(server) -> dict[str, str]:
    return {"grpc": server.grpc_url, "http": server.http_url}


@pytest.fixture(params=PROTOCOLS)
def client(server, request):
    with Client(urls(server)[request.param], request.param) as client:
        yield client


def infer(server, images: list[bytes], outputs: list[str] | None = None, model="image_score", protocol="grpc"):
    """Send several images in one request with the plain Triton client."""
    library = {"grpc": tritonclient.grpc, "http": tritonclient.http}[protocol]
    tensor = library.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    requested = [library.InferRequestedOutput(name) for name in outputs] if outputs else None
    with library.InferenceServerClient(urls(server)[protocol]) as client:
        return client.infer(model, [tensor], outputs=requested)


def post(server, body: bytes, headers: dict[str, str], model="image_score") -> tuple[int, bytes, dict]:
    request = urllib.request.Request(f"http://{server.http_url}/v2/models/{model}/infer", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {}


def statistics(server, model: str):
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.get_inference_statistics(model)
        assert answer is not None
        return answer.model_stats[0]


# ---- equal along the whole way ----


def test_embeddings_equal_torch_on_real_photographs(client, demo):
    tower = load_tower(demo.encoder)
    served = np.stack([result.vector for result in client.embed(sample_photos())])
    with torch.inference_mode():
        inputs = torch.stack([cast(torch.Tensor, tower.transform(Image.open(path))) for path in sample_photos()])
        expected = torch.nn.functional.normalize(tower.visual(inputs), dim=-1).numpy()
    cosines = (served * expected).sum(axis=1)
    assert cosines.min() >= 0.99999


def test_scores_equal_onnx_on_the_served_pixels(client, demo, encoder):
    transform = served_transform(encoder.preprocessing, demo.serving)
    pixels = np.stack([transform(path.read_bytes()) for path in sample_photos()])
    embeddings = onnxruntime.InferenceSession(encoder_folder(demo) / "model.onnx").run(None, {"pixels": pixels})
    head = onnxruntime.InferenceSession(head_folder(demo, demo.heads[0]) / "model.onnx")
    expected, decisions, _ = map(np.asarray, head.run(None, {"embedding": np.asarray(embeddings[0])}))
    scores = client.score(sample_photos())
    np.testing.assert_allclose([score.scores for score in scores], expected, atol=1e-5)
    assert np.array_equal([score.decisions for score in scores], decisions)


def test_both_protocols_give_the_same_bits(server):
    results = []
    for protocol in PROTOCOLS:
        with Client(urls(server)[protocol], protocol, concurrency=1) as client:
            results.append(client.score(sample_photos()))
    for over_grpc, over_http in zip(*results, strict=True):
        assert np.array_equal(over_grpc.scores, over_http.scores)
        assert over_grpc.model_version == over_http.model_version


def test_the_response_names_the_revision_of_head_json(client, demo):
    revision = read_head(head_folder(demo, demo.heads[0])).revision
    assert client.score([jpeg()])[0].model_version == f"demo-{revision:016x}"


def test_the_client_learns_the_heads_from_the_server(client, demo):
    (head,) = client.heads()
    assert (head.name, list(head.class_names)) == ("demo", demo.heads[0].class_names)
    assert head.notice == demo.notice


def test_stored_embeddings_are_scored_by_the_head_alone(server):
    with Client(server.grpc_url) as client:
        vectors = np.stack([result.vector for result in client.embed(sample_photos())])
        expected = [score.scores for score in client.score(sample_photos())]
    tensor = tritonclient.grpc.InferInput("embedding", list(vectors.shape), "FP32")
    tensor.set_data_from_numpy(vectors)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("demo_head", [tensor])
    assert result is not None
    np.testing.assert_allclose(np.asarray(result.as_numpy("score")), expected, atol=1e-6)


# ---- ways in ----


def test_raw_binary_curl(server, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    url = f"http://{server.http_url}/v2/models/image_score/infer"
    command = ["curl", "-sS", "--fail", "--data-binary", "@photo.jpg", "-H", "Inference-Header-Content-Length: 0"]
    command += ["-H", "Content-Type: application/octet-stream", "-D", "headers", url]
    body = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    headers = (tmp_path / "headers").read_text().lower()
    length = int(headers.split("inference-header-content-length: ")[1].split()[0])
    values, offset = {}, length
    for output in json.loads(body[:length])["outputs"]:
        dtype = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}[output["datatype"]]
        values[output["name"]] = np.frombuffer(body, dtype, 1, offset)[0]
        offset += output["parameters"]["binary_data_size"]
    with Client(server.grpc_url) as client:
        assert values["demo"] == client.score([jpeg()])[0].scores[0]


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,"])
def test_base64_and_data_uris_in_json(server, prefix):
    text = prefix + base64.b64encode(jpeg()).decode()
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}
    status, answer, _ = post(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert status == 200
    outputs = {output["name"]: output["data"][0] for output in json.loads(answer)["outputs"]}
    with Client(server.grpc_url) as client:
        assert outputs["demo"] == pytest.approx(float(client.score([jpeg()])[0].scores[0]), abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_photo_of_20_megabytes_is_scored(server, protocol):
    photo = encoded(Image.effect_noise((3000, 2400), 120).convert("RGB"), "PNG", compress_level=0)
    assert 20_000_000 < len(photo) < 32 * 2**20
    with Client(urls(server)[protocol], protocol) as client:
        assert client.score([photo])[0].ok


def test_over_the_byte_limit_is_refused(client):
    result = client.score([b"\xff\xd8\xff" + bytes(33 * 2**20)])[0]
    assert result.error is not None
    assert result.error.code == "TOO_MANY_BYTES"


# ---- batching ----


def test_dynamic_batching_merges_requests(server):
    before = statistics(server, "clip_encoder")
    with Client(server.grpc_url, concurrency=64) as client:
        assert all(score.ok for score in client.score([jpeg(seed=seed % 8) for seed in range(256)]))
    until(lambda: statistics(server, "clip_encoder").inference_count == before.inference_count + 256, "256 images")
    assert statistics(server, "clip_encoder").execution_count < before.execution_count + 256


def test_the_batch_does_not_change_a_score(server):
    images = [jpeg(seed=seed) for seed in range(16)]
    together = infer(server, images, ["demo"]).as_numpy("demo")
    alone = np.concatenate([infer(server, [image], ["demo"]).as_numpy("demo") for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_more_images_than_the_batch_limit_are_refused(server):
    with pytest.raises(InferenceServerException, match="batch-size must be <= 32"):
        infer(server, [jpeg()] * 33)


def test_a_head_nobody_asked_for_is_not_run(server):
    before = settled(lambda: statistics(server, "demo_head").execution_count)
    with Client(server.grpc_url) as client:
        client.embed([jpeg()])
    assert settled(lambda: statistics(server, "demo_head").execution_count) == before


# ---- bad files ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_with_bad_images_is_refused_whole_and_names_them(server, protocol):
    with pytest.raises(InferenceServerException) as caught:
        infer(server, [jpeg(), b"", jpeg(), SVG], protocol=protocol)
    message = caught.value.message()
    assert message is not None
    assert "image 1: EMPTY: 0 bytes; image 3: NOT_AN_IMAGE: " in message
    assert "image 0" not in message
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


def test_a_bad_file_among_neighbours_harms_none_of_them(client):
    good = jpeg()
    alone = client.score([good])[0].scores
    results = client.score([good if index % 3 else b"broken" for index in range(60)])
    for index, result in enumerate(results):
        if index % 3:
            np.testing.assert_allclose(result.scores, alone, atol=1e-5)
        else:
            assert result.error is not None
            assert result.error.code == "NOT_AN_IMAGE"


def test_every_output_is_finite_json(server):
    text = base64.b64encode(encoded(Image.new("RGB", (50, 50)), "PNG")).decode()
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}]}
    _, answer, _ = post(server, json.dumps(body).encode(), {})
    assert "NaN" not in answer.decode()


def generated(server, image: str) -> tuple[int, dict]:
    """The answer of Triton's own endpoint for one flat JSON object."""
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/image_score/generate",
        json.dumps({"image": image}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,"])
def test_generate_takes_base64_and_answers_with_flat_json(server, client, prefix):
    result = client.score([jpeg()])[0]
    status, answer = generated(server, prefix + base64.b64encode(jpeg()).decode())
    assert status == 200
    assert answer["demo"] == pytest.approx(float(result.scores[0]), abs=1e-6)
    assert answer["demo_decision"] == int(result.decisions[0])
    assert f"demo-{answer['demo_revision']:016x}" == result.model_version


def test_generate_says_what_is_wrong_with_an_image(server):
    status, answer = generated(server, base64.b64encode(SVG).decode())
    assert status in (400, 500)
    assert "image 0: NOT_AN_IMAGE" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0, 1], "data": []}]},
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}]},
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]},
        {"inputs": [{"name": "picture", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}]},
        {"inputs": []},
    ],
)
def test_malformed_requests_are_errors_and_the_server_lives(server, body):
    status, answer, _ = post(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert status == 400
    assert json.loads(answer)["error"]
    with Client(server.grpc_url) as client:
        assert client.health().ok


def test_many_clients_at_once_get_their_own_answers(server):
    images = [encoded(noise(90 + index, 80, seed=index), "PNG") for index in range(24)]
    with Client(server.grpc_url, concurrency=1) as client:
        expected = [score.scores[0] for score in client.score(images)]

    def score_all(_: int) -> list[float]:
        with Client(server.grpc_url) as client:
            return [score.scores[0] for score in client.score(images)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for scores in pool.map(score_all, range(4)):
            np.testing.assert_allclose(scores, expected, atol=1e-5)
