"""Watching on the real server: counts add up, answers do not change, and a shadow runs beside the live head."""

from __future__ import annotations

import concurrent.futures
import json
import math
import shutil
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
from artefacts import encoder_manifest, write_head
from pictures import jpeg
from tritonclient.utils import InferenceServerException
from waiting import PATIENCE_S, until

from build.head import build_head
from build.repository import install
from build.repository_check import check
from build.repository_configs import stamped
from clipsieve import Client
from common.manifest import ScoreDistribution, read_head, write_manifest
from common.score_edges import PROBABILITY_EDGES
from common.score_watch.steps import add_watches
from recipes.schema import RecipeError, load_recipe, parse_recipe
from serving.drift import SERVED, TRAINED, drifts, histograms
from serving.embedded import EmbeddedServer, ServerSettings
from serving.probe import probe

# ---- configs ----


def two_heads(**changes) -> dict:
    """The demo recipe's data, with a live head and a candidate."""
    data = load_recipe("demo").model_dump(mode="json", exclude_defaults=True)
    head = {"name": "live", "class_names": ["angular", "round"], "shadow": "candidate"}
    candidate = {"name": "candidate", "class_names": ["angular", "round"]}
    return data | {"name": "watched", "heads": [head, candidate], "serving": {"watch": True}} | changes


@pytest.fixture
def configs(tmp_path):
    recipe = parse_recipe(two_heads())
    encoder = encoder_manifest()
    heads = [write_head(tmp_path / head.name, encoder, head.class_names, name=head.name) for head in recipe.heads]
    found = stamped(recipe, encoder, heads)
    add_watches(found, recipe, heads)
    return found


def test_the_ensembles_outputs_do_not_change_and_a_shadow_has_none(configs):
    ensemble = configs["image_score"]
    assert [output.name for output in ensemble.output] == ["live", "live_decision", "live_revision"]
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == [
        "preprocess", "clip_encoder", "live_head", "candidate_head", "live_watch",
    ]  # fmt: skip


def test_no_output_of_the_ensemble_feeds_a_step(configs):
    """One that does deadlocks when it is not requested."""
    ensemble = configs["image_score"]
    taken = {name for step in ensemble.ensemble_scheduling.step for name in step.input_map.values()}
    assert not taken & {output.name for output in ensemble.output}


def test_the_watch_takes_the_shadow(configs):
    watch = configs["live_watch"]
    assert [tensor.name for tensor in watch.input] == [
        "score", "decision", "revision", "shadow_score", "shadow_decision",
    ]  # fmt: skip
    assert watch.max_batch_size == configs["image_score"].max_batch_size
    assert json.loads(watch.parameters["watched"].string_value) == {
        "head": "live", "labels": ["round"], "thresholds": [1], "edges": PROBABILITY_EDGES,
        "shadow": "candidate", "shadow_thresholds": [1],
    }  # fmt: skip
    assert "candidate_watch" not in configs


def test_without_the_switch_nothing_is_added(tmp_path):
    recipe, encoder = load_recipe("demo"), encoder_manifest()
    heads = [write_head(tmp_path, encoder, recipe.heads[0].class_names)]
    plain, found = stamped(recipe, encoder, heads), stamped(recipe, encoder, heads)
    add_watches(found, recipe, heads)
    assert found == plain


BAD_SHADOWS = [
    ({"shadow": "nobody"}, {}, r"shadow of head live must be another head, \['candidate'\]; found 'nobody'"),
    ({"shadow": "live"}, {}, "must be another head"),
    ({}, {"shadow": "live"}, "must be another head"),
    ({}, {"class_names": ["angular", "oval"]}, "must have one task and class_names"),
]


@pytest.mark.parametrize(("live", "candidate", "words"), BAD_SHADOWS)
def test_unusable_shadows_are_refused(live, candidate, words):
    data = two_heads()
    data["heads"] = [data["heads"][0] | live, data["heads"][1] | candidate]
    with pytest.raises(RecipeError, match=words):
        parse_recipe(data)


def test_a_shadow_needs_the_watch():
    with pytest.raises(RecipeError, match=r"compared only with serving: \{watch: true\}"):
        parse_recipe(two_heads(serving={}))


# ---- on the real server ----


@pytest.fixture(scope="module")
def watching(encoder, tmp_path_factory):
    """A live head with a known training distribution and a candidate beside it, watched."""
    folder: Path = tmp_path_factory.mktemp("watched")
    data = two_heads()
    for head in data["heads"]:
        head["source"] = str(folder / head["name"])
    recipe = parse_recipe(data)
    for seed, head in enumerate(recipe.heads):
        assert head.source is not None
        manifest = write_head(head.source, encoder, head.class_names, name=head.name, seed=seed)
        known = ScoreDistribution(images=100, edges=PROBABILITY_EDGES, ratios=[[0.5] * len(PROBABILITY_EDGES)])
        write_manifest(manifest.model_copy(update={"score_distribution": known}), head.source / "head.json")
        build_head(head.source, recipe.build.opset)
    install(recipe, folder / "models")
    assert check(folder / "models") == []
    with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server:
        yield server, folder


SCORES = 'clipsieve_scores_total{head="live",label="round"}'


def metrics(server) -> str:
    """The server's metrics. Counts reach them once a second, so each test waits until its own are there."""
    with urllib.request.urlopen(server.metrics_url) as response:
        return response.read().decode()


def value(text: str, series: str) -> float:
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{series} ")), 0)


def decision_of(server, picture: bytes) -> int | None:
    """Of one request, by the plain Triton client: clipsieve's own may ask twice. None for a refused picture."""
    tensor = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture]], dtype=object))
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        try:
            result = client.infer("image_score", [tensor])
        except InferenceServerException:
            return None
        assert result is not None
        return int(np.asarray(result.as_numpy("live_decision")).item())


def test_the_warm_up_and_the_proof_are_not_counted(watching):
    server, _ = watching
    time.sleep(2)  # counts go out once a second: what was counted before the server was ready has reached the metrics
    assert value(metrics(server), "clipsieve_images_total") == 0
    assert value(metrics(server), SCORES) == 0


def test_counts_of_all_processes_add_up(watching):
    server, _ = watching
    before = metrics(server)
    pictures = [jpeg(seed=seed % 10) for seed in range(150)] + [b"no picture"] * 5
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda picture: decision_of(server, picture), pictures))
    assert decisions.count(None) == 5
    expected = {
        SCORES: 150,
        "clipsieve_images_total": 155,
        'clipsieve_image_failures_total{code="NOT_AN_IMAGE"}': 5,
        'clipsieve_image_pixels_bucket{le="+Inf"}': 150,
        'clipsieve_shadow_score_bucket{head="live",label="round",le="+Inf",shadow="candidate"}': 150,
        'clipsieve_decisions_total{decision="block",head="live",label="round"}': decisions.count(1),
    }

    def counted() -> dict[str, float]:
        after = metrics(server)
        return {name: value(after, name) - value(before, name) for name in expected}

    until(lambda: counted() == expected, f"{expected}")


def test_the_histogram_is_that_of_the_scores_and_the_training_is_beside_it(watching):
    server, folder = watching
    before = metrics(server)
    pictures = [jpeg(seed=seed) for seed in range(40)]
    with Client(server.grpc_url) as client:
        scores = np.array([score.scores[0] for score in client.score(pictures)])
    expected = {edge: (scores <= edge).sum() for edge in (*PROBABILITY_EDGES, math.inf)}

    def counted() -> dict[float, float]:
        old, new = (histograms(text, SERVED)["live", "round"] for text in (before, metrics(server)))
        return {edge: new[edge] - old[edge] for edge in expected}

    def total() -> float:
        return value(metrics(server), SCORES) - value(before, SCORES)

    until(lambda: counted() == expected and total() == len(pictures), f"{expected}")
    after = metrics(server)
    trained = histograms(after, TRAINED)["live", "round"]
    assert trained == dict.fromkeys(PROBABILITY_EDGES, 0.5) | {math.inf: 1}
    revision = read_head(folder / "live").revision
    assert value(after, f'clipsieve_head_revision{{head="live",revision="{revision:016x}"}}') == 1
    (row,) = drifts(after, before, 10)
    assert row.scores == 40
    assert row.verdict in ("stable", "shifted", "drifted")


def test_answers_are_the_heads_own_whatever_outputs_are_asked_for(watching):
    server, _ = watching
    before = value(metrics(server), SCORES)
    tensor = tritonclient.grpc.InferInput("image", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg(seed=1)], [jpeg(seed=2)]], dtype=object))
    names = ["live", "live_decision", "live_revision"]
    with Client(server.grpc_url) as client:
        vectors = np.stack([result.vector for result in client.embed([jpeg(seed=1), jpeg(seed=2)])])
    embedding = tritonclient.grpc.InferInput("embedding", list(vectors.shape), "FP32")
    embedding.set_data_from_numpy(vectors)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        direct = client.infer("live_head", [embedding])
        for asked in ([names[0]], [names[1]], [names[2]], names[:2], names):
            wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in asked]
            result = client.infer("image_score", [tensor], outputs=wanted, client_timeout=PATIENCE_S)
            assert result is not None
            assert direct is not None
            assert {output.name for output in result.get_response().outputs} == set(asked)
            for name in asked:
                own = direct.as_numpy(name.removeprefix("live").removeprefix("_") or "score")
                np.testing.assert_allclose(np.asarray(result.as_numpy(name)), np.asarray(own), atol=1e-6)
    until(lambda: value(metrics(server), SCORES) == before + 2 * 5, "the count of every score")


def test_clients_see_the_live_head_alone(watching):
    server, _ = watching
    with Client(server.grpc_url) as client:
        assert [head.name for head in client.heads()] == ["live"]


def test_a_probe_is_not_counted(watching):
    server, _ = watching
    before = value(metrics(server), SCORES)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        assert probe(client, server.picture) is None
    decision_of(server, jpeg())  # counted after the probe, had that been counted
    until(lambda: value(metrics(server), SCORES) > before)
    assert value(metrics(server), SCORES) == before + 1


def test_a_spoiled_watch_is_found(watching, tmp_path):
    _, folder = watching
    copy = Path(shutil.copytree(folder / "models", tmp_path / "models"))
    with (copy / "live_watch/1/score_counts.py").open("a") as code:
        code.write("\n")
    (problem,) = check(copy)
    assert "not the code of common/score_watch/model/score_counts.py" in problem


def test_a_watched_head_of_grades_gives_its_deviation(encoder, tmp_path):
    """Asked for alone or with the score, beside a shadow that has one too."""
    data = two_heads()
    for head in data["heads"]:
        head |= {"task": "regression", "class_names": ["taste"], "source": str(tmp_path / head["name"])}
        head |= {"fit": {"loss": "nll"}}
    recipe = parse_recipe(data)
    for seed, head in enumerate(recipe.heads):
        assert head.source is not None
        write_head(
            head.source, encoder, head.class_names, name=head.name, seed=seed, task="regression", deviation=True,
            thresholds=(0.2,),
        )  # fmt: skip
        build_head(head.source, recipe.build.opset)
    install(recipe, tmp_path / "models")
    assert check(tmp_path / "models") == []
    picture = jpeg(seed=1)
    with EmbeddedServer(tmp_path / "models", ServerSettings.on_free_ports(tmp_path / "log")) as server:
        with Client(server.grpc_url) as client:
            assert [(head.name, head.gives_deviation) for head in client.heads()] == [("live", True)]
            (embedding,) = client.embed([picture])
            (score,) = client.score([picture])
        session = onnxruntime.InferenceSession(tmp_path / "live" / "model.onnx")
        names = ["score", "deviation"]
        own, deviation = map(np.asarray, session.run(names, {"embedding": embedding.vector[None]}))
        assert float(score.scores[0]) == pytest.approx(own[0, 0], abs=1e-4)
        assert score.heads["live"].deviation == pytest.approx(deviation[0, 0], rel=1e-4)
        tensor = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[picture]], dtype=object))
        with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            wanted = [tritonclient.grpc.InferRequestedOutput("live_deviation")]
            result = client.infer("image_score", [tensor], outputs=wanted, client_timeout=PATIENCE_S)
        assert result is not None
        np.testing.assert_allclose(np.asarray(result.as_numpy("live_deviation")), deviation, rtol=1e-4)
        series = 'clipsieve_scores_total{head="live",label="taste"}'
        until(lambda: value(metrics(server), series) >= 1, "the count of the score")
