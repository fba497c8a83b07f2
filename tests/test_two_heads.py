"""Two heads on one encoder, served: one encoding for both, and none that was not requested."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.grpc
from artefacts import write_head
from pictures import jpeg
from waiting import until

from build.head import build_head
from build.repository import install
from clipsieve import Client, UnknownHead
from recipes.schema import parse_recipe
from serving.embedded import EmbeddedServer, ServerSettings


@pytest.fixture(scope="module")
def two_heads(demo, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "two"}
    data["heads"] = [
        {"name": "nsfw", "class_names": ["safe", "nsfw"], "source": str(folder / "nsfw")},
        {"name": "taste", "task": "ranking", "class_names": ["taste"], "source": str(folder / "taste")},
    ]
    recipe = parse_recipe(data)
    for seed, head in enumerate(recipe.heads):
        assert head.source is not None
        thresholds = tuple(head.fixed_thresholds)
        options = {"name": head.name, "task": head.task, "seed": seed, "thresholds": thresholds}
        options["deviation"] = head.name == "taste"
        write_head(head.source, encoder, head.class_names, **options)
        build_head(head.source, recipe.build.opset)
    install(recipe, folder / "models")
    with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server:
        yield server


MODELS = ("preprocess", "clip_encoder", "nsfw_head", "taste_head")


def executions(server) -> dict[str, int]:
    """Images each model has run. A model counts one a moment after its answer left, so tests wait for their counts."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.get_inference_statistics()
        assert answer is not None
        return {model.name: model.inference_count for model in answer.model_stats if model.name in MODELS}


def infer(server, outputs: list[str]) -> dict[str, np.ndarray]:
    tensor = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg()]], dtype=object))
    requested = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("image_score", [tensor], outputs=requested)
        assert result is not None
        return {name: np.asarray(result.as_numpy(name)) for name in outputs}


def test_both_heads_are_scored_in_one_encoding(two_heads):
    before = executions(two_heads)
    scores = infer(two_heads, ["nsfw", "taste"])
    until(lambda: executions(two_heads) == {name: count + 1 for name, count in before.items()}, "one run of each model")
    assert scores["nsfw"] != scores["taste"]


def test_a_head_nobody_asked_for_is_not_run(two_heads):
    before = executions(two_heads)
    infer(two_heads, ["nsfw", "nsfw_revision"])
    expected = {name: count + (name != "taste_head") for name, count in before.items()}
    until(lambda: executions(two_heads) == expected, f"{expected}")


def test_clients_name_the_heads_they_want_or_have_all(two_heads):
    with Client(two_heads.grpc_url) as client:
        assert [head.name for head in client.heads()] == ["nsfw", "taste"]
        (one,) = client.score([jpeg()], heads="nsfw")
        assert one.model_version.startswith("nsfw-")
        (both,) = client.score([jpeg()])
        assert list(both.heads) == ["nsfw", "taste"]
        assert both.heads["nsfw"].scores == pytest.approx(one.scores, abs=1e-6)
        with pytest.raises(UnknownHead, match="no head 'clip'; this server has: nsfw, taste"):
            client.score([jpeg()], heads="clip")


def test_a_head_gives_the_deviation_of_its_score_too(two_heads, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    with Client(two_heads.grpc_url) as client:
        nsfw, taste = client.heads()
        assert (nsfw.gives_deviation, taste.gives_deviation, taste.task) == (False, True, "ranking")
        (both,) = client.score([path])
        deviation = both.heads["taste"].deviation
        assert deviation is not None
        assert deviation > 0
        assert both.heads["nsfw"].deviation is None
        (embedding,) = client.embed([path])
        stored = client.score_embeddings("taste", embedding.vector[None])
        assert stored.deviations == pytest.approx([deviation], rel=1e-3)
        assert client.score_embeddings("nsfw", embedding.vector[None]).deviations is None
    served = infer(two_heads, ["taste_deviation"])["taste_deviation"]
    assert served.shape == (1, 1)
    assert served.item() == pytest.approx(deviation, rel=1e-5)


def test_a_ranking_without_thresholds_decides_nothing(two_heads):
    assert infer(two_heads, ["taste_decision"])["taste_decision"].tolist() == [[0]]
