"""Fine-tuned models as they are served: exported, calibrated on the validation part, equal to torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import tritonclient.grpc
from drawn_shapes import draw_folder, finetune_recipe

from build.encoder import make_encoder
from build.head import build_head
from build.repository import check_installed, install
from common.manifest import HeadManifest, read_encoder, read_head
from common.paths import encoder_folder, head_folder, named_path
from common.pixels import served_transform
from recipes.schema import Recipe, load_recipe
from serving.embedded import EmbeddedServer, ServerSettings
from training import embed, finetune, fit
from training.calibrate import activated, calibrated_logits
from training.errors import StepError
from training.fit_inputs import read_inputs
from training.sources import HeadData
from training.store import store_folder
from training.store_view import read_pictures

pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: make lightning")
pytest.importorskip("imagehash", reason="imagehash is not installed: make lightning")

MODELS = {
    "cnn": {"model": "clipsieve_cnn", "image_size": 32},
    "convnext": {"model": "convnext_atto", "image_size": 64, "resize": "squash", "learning_rate": 0.002},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("shapes"), 40)


@pytest.fixture(scope="module", params=list(MODELS))
def tuned(request, shapes, tmp_path_factory) -> tuple[Recipe, Path]:
    """A recipe, and its file, whose encoder was fine-tuned, exported and calibrated as `make finetune` does."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16} | MODELS[request.param]
    recipe = finetune_recipe(f"served-{request.param}", **settings)
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_defaults=True)))
    options = ["--recipe", str(file), "--data", str(shapes)]
    finetune.main([*options, "--workers", "0"])
    make_encoder(load_recipe(file))
    embed.main(options)
    fit.main(["--recipe", str(file)])
    return load_recipe(file), file


@pytest.fixture(scope="module")
def served(tuned, tmp_path_factory) -> Iterator[tuple[Recipe, HeadManifest, EmbeddedServer]]:
    recipe, folder = tuned[0], tmp_path_factory.mktemp("models")
    head = head_folder(recipe, recipe.heads[0])
    build_head(head, recipe.build.opset)
    install(recipe, folder / "models")
    assert check_installed(recipe, folder / "models") == []
    with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server:
        yield recipe, read_head(head), server


def test_served_scores_are_those_of_the_model_in_torch(served, shapes):
    recipe, manifest, server = served
    pictures = [path.read_bytes() for path in sorted(shapes.rglob("*.png"))[::8]]
    tensor = tritonclient.grpc.InferInput("image", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture] for picture in pictures], dtype=object))
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("image_score", [tensor], outputs=[tritonclient.grpc.InferRequestedOutput("shape")])
    assert result is not None
    scores = np.asarray(result.as_numpy("shape"))
    folder = named_path(Path(str(recipe.encoder.weights)))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    views = read_encoder(encoder_folder(recipe)).preprocessing
    pixels = np.stack([served_transform(views, recipe.serving)(picture) for picture in pictures])
    mean, std = torch.tensor(views[0].mean), torch.tensor(views[0].std)
    with torch.inference_mode():
        logits = model(((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)).double().numpy()
    of_round = logits[:, 1:] - logits[:, :1]
    expected = activated(calibrated_logits(of_round, manifest.calibration), manifest.activation)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_the_head_was_calibrated_and_measured_on_what_the_model_had_not_seen(tuned):
    recipe = tuned[0]
    manifest = read_head(head_folder(recipe, recipe.heads[0]))
    record = json.loads((named_path(Path(str(recipe.encoder.weights))) / "finetune.json").read_text())
    counts = manifest.training.counts
    assert counts is not None
    assert {part: sum(of.values()) for part, of in counts.items()} == record["counts"]
    assert manifest.training.refit is not None
    assert (manifest.training.refit.folds, manifest.training.refit.rows) == (0, 0)
    assert manifest.metrics.model_dump()["auroc"] == pytest.approx(record["metrics"]["test"]["auroc"], abs=1e-6)
    distribution = manifest.score_distribution
    assert distribution is not None
    assert distribution.images == record["counts"]["validation"] + record["counts"]["test"]


def test_the_encoder_says_that_it_is_fine_tuned(tuned):
    recipe = tuned[0]
    manifest = read_encoder(encoder_folder(recipe))
    assert [source.finetuned for source in manifest.sources] == [True]
    assert "finetune" not in manifest.recipe["encoder"]  # another patience alone exports nothing anew


def test_a_head_that_would_hold_out_training_pictures_is_refused(tuned):
    recipe = tuned[0]
    fit_of_others = recipe.heads[0].fit.model_copy(update={"folds": 5})
    head = recipe.heads[0].model_copy(update={"fit": fit_of_others, "classifier": None})
    with pytest.raises(StepError, match=r"write fit: \{folds: 0, near_duplicate_cosine: null\} \(found folds 5"):
        read_inputs(recipe, head)


def test_pictures_that_are_new_since_the_fine_tuning_train(tuned, shapes, tmp_path):
    recipe, file = tuned
    draw_folder(tmp_path / "more", 3, seed=77)
    embed.main(["--recipe", str(file), "--data", str(tmp_path / "more")])
    pictures = read_pictures(HeadData(store_folder(recipe), recipe.name, recipe.heads[0].name))
    sides = {side for path, side in zip(pictures.path, pictures.split, strict=True) if path.startswith(str(tmp_path))}
    assert sides == {"train"}
    embed.main(["--recipe", str(file), "--data", str(shapes)])


def test_weights_that_were_trained_anew_are_exported_before_pictures_are_embedded(tuned, shapes):
    recipe, file = tuned
    config = named_path(Path(str(recipe.encoder.weights))) / "config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    try:
        with pytest.raises(StepError, match="other weights than the encoder was exported from"):
            embed.main(["--recipe", str(file), "--data", str(shapes)])
    finally:
        config.write_text(text)
