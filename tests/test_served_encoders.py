"""Recipes with an encoder out of the ordinary, served: hidden layers, two encoders side by side, int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
from artefacts import write_head
from pictures import jpeg

from build.encoder import make_encoder
from build.head import build_head
from build.repository import check_installed, install
from build.verify import find_stages, verify
from common.manifest import EncoderManifest
from common.paths import encoder_folder
from common.photos import sample_photos
from common.pixels import served_transform
from recipes.schema import Recipe, parse_recipe
from serving.embedded import EmbeddedServer, ServerSettings

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}


def encoder_section(demo: Recipe, kind: str) -> dict:
    first = demo.encoder.model_dump(mode="json", exclude_defaults=True)
    if kind == "layers":
        return first | {"layers": [0, 1, 3]}
    if kind == "int8":
        return first
    second = {"model": "clipsieve-test-small", "open_clip_config": SMALL, "seed": 3}
    return {"concatenate": [first, second]}


@pytest.fixture(scope="module", params=["layers", "two-encoders", "int8"])
def served(request, demo, tmp_path_factory) -> Iterator[tuple[Recipe, EncoderManifest, EmbeddedServer]]:
    folder = tmp_path_factory.mktemp(request.param)
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": request.param}
    data["encoder"] = encoder_section(demo, request.param)
    data["heads"] = [{"name": "demo", "class_names": ["angular", "round"], "source": str(folder / "head")}]
    data["build"] = {"precision": "int8" if request.param == "int8" else "fp32"}
    recipe = parse_recipe(data)
    encoder = make_encoder(recipe)[-1]
    write_head(folder / "head", encoder, recipe.heads[0].class_names)
    build_head(folder / "head", recipe.build.opset)
    install(recipe, folder / "models")
    assert check_installed(recipe, folder / "models") == []
    with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server:
        yield recipe, encoder, server


def infer(server: EmbeddedServer, model: str, output: str, images: list[bytes]) -> np.ndarray:
    tensor = tritonclient.grpc.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    requested = [tritonclient.grpc.InferRequestedOutput(output)]
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer(model, [tensor], outputs=requested)
        assert result is not None
        return np.asarray(result.as_numpy(output))


def test_served_embeddings_are_those_the_build_checked(served):
    recipe, encoder, server = served
    assert encoder.embed_dim == {"layers": 128 + 192 + 192, "two-encoders": 128 + 32, "int8": 128}[recipe.name]
    photos = [path.read_bytes() for path in sample_photos()]
    embeddings = infer(server, "image_embedding", "embedding", photos)
    checked = find_stages(recipe)[-1].embeddings[: len(photos)]  # its pictures begin with these
    np.testing.assert_allclose(embeddings, checked, atol=1e-5)


def test_scores_are_the_heads_on_those_embeddings(served):
    recipe, encoder, server = served
    images = [jpeg(300, 200), jpeg(120, 400)]
    transform = served_transform(encoder.preprocessing, recipe.serving)
    pixels = np.stack([transform(image) for image in images])
    assert pixels.shape[1:] == tuple(encoder.input.dims)
    (embeddings,) = onnxruntime.InferenceSession(encoder_folder(recipe) / "model.onnx").run(None, {"pixels": pixels})
    source = recipe.heads[0].source
    assert isinstance(source, Path)
    (expected,) = onnxruntime.InferenceSession(source / "model.onnx").run(["score"], {"embedding": embeddings})
    np.testing.assert_allclose(infer(server, "image_score", "demo", images), np.asarray(expected), atol=1e-5)


def test_the_chain_is_verified(served):
    recipe, _, _ = served
    full, *reduced = verify(recipe)
    assert full.passed
    assert full.heads[0].decisions_changed == 0
    assert full.heads[0].score_max_abs_difference < 1e-5
    assert [stage.stage for stage in reduced] == (["ONNX int8"] if recipe.build.precision == "int8" else [])
    assert all(stage.passed for stage in reduced)
