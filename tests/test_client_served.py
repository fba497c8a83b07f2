"""The client against the real server: stored embeddings, kinds of images, and a server restarted mid-run."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc
from pictures import jpeg
from PIL import Image
from waiting import until

from clipsieve import Client, Retry, grpc_transport
from serving.embedded import EmbeddedServer, ServerSettings


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


def scored_by(server: EmbeddedServer) -> int:
    """Images that the server has scored."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("image_score")
    assert statistics is not None
    return statistics.model_stats[0].inference_count


def test_server_that_is_stopped_and_started_again_in_the_middle_of_a_run(repository, tmp_path):
    """The run waits for it, and nothing is lost."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(1000):
        (photos / f"{number:04}.jpg").write_bytes(jpeg(seed=number % 4))
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-m", "clipsieve.cli", "score", photos, "--out", out, "--concurrency", "8", "--json-log"]
    options = {"log_path": tmp_path / "log", "exit_timeout_s": 4}  # it waits for the client, which will be stopped
    with (
        EmbeddedServer(repository, ServerSettings.on_free_ports(**options)) as server,
        subprocess.Popen([*command, "--url", server.grpc_url], stderr=subprocess.PIPE, text=True) as run,
    ):
        assert run.stderr is not None
        until(lambda: scored_by(server) > 50, "a run under way")
        run.send_signal(signal.SIGSTOP)  # or a fast one might be done before the server has stopped
        server.stop()
        run.send_signal(signal.SIGCONT)
        seen = list(itertools.takewhile(lambda line: "waiting for the server" not in line, run.stderr))
        assert run.poll() is None, seen
        server.start_again()
        stderr = run.stderr.read()
    assert run.returncode == 0, stderr
    assert "the server is back" in stderr
    table = pq.read_table(out)
    assert table["error"].null_count == len(table) == 1000
    assert table["image_path"].to_pylist() == [f"{photos}/{number:04}.jpg" for number in range(1000)]


def test_a_request_whose_end_is_cut_off_names_a_limit(server, monkeypatch):
    """What a proxy with a limit may leave of a picture, as the real server answers it."""
    whole = grpc_transport._message
    monkeypatch.setattr(grpc_transport, "_message", lambda request: whole(request)[:-100])
    with Client(server.grpc_url, retry=Retry(attempts=1)) as client:
        error = client.score([jpeg(seed=1)])[0].error
    assert error is not None
    assert error.code == "TOO_MANY_BYTES"
    assert "Unable to parse request" in error.message
