"""The client against the real server: stored embeddings, kinds of images, and a server restarted mid-run."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import jpeg
from PIL import Image

from clipsieve import Client
from serving.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def client(server):
    with Client(server.grpc_url) as client:
        yield client


def test_stored_embeddings_score_as_their_images_do(client):
    images = [jpeg(seed=seed) for seed in range(70)]  # more than one batch
    scores = client.score(images)
    embeddings = np.stack([each.vector for each in client.embed(images)])
    stored = client.score_embeddings("demo", embeddings)
    np.testing.assert_allclose(stored.scores, [each.scores for each in scores], atol=1e-6)
    np.testing.assert_array_equal(stored.decisions, [each.decisions for each in scores])
    assert stored.version == scores[0].model_version


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_kind_of_image_has_the_same_score(server, protocol, tmp_path):
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(file, "PNG")
    png = file.getvalue()
    (tmp_path / "a.png").write_bytes(png)
    picture = Image.open(io.BytesIO(png))
    kinds = [png, tmp_path / "a.png", io.BytesIO(png), picture, np.asarray(picture)]
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, protocol) as client:
        scores = client.score(kinds)
    assert [score.error for score in scores] == [None] * len(kinds)
    assert len({float(score.scores[0]) for score in scores}) == 1


def test_server_that_is_stopped_and_started_again_in_the_middle_of_a_run(repository, tmp_path):
    """The run waits for it, and nothing is lost."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(1000):
        (photos / f"{number:04}.jpg").write_bytes(jpeg(seed=number % 4))
    options = {"metrics_port": 0, "http_port": 0, "log_path": tmp_path / "log"}
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "clipsieve.cli", "score", photos, "--out", out, "--concurrency", "8", "--json-log"]
    with EmbeddedServer(repository, grpc_port=0, **options) as first:
        port = int(first.grpc_url.rpartition(":")[2])
        run = subprocess.Popen([*command, "--url", first.grpc_url], stderr=subprocess.PIPE, text=True)
        time.sleep(1.5)
        assert run.poll() is None
    with EmbeddedServer(repository, grpc_port=port, **options):
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 0, stderr
    assert "waiting for the server" in stderr
    assert "the server is back" in stderr
    table = pq.read_table(out)
    assert table["error"].null_count == len(table) == 1000
    assert table["image_path"].to_pylist() == [f"{photos}/{number:04}.jpg" for number in range(1000)]
