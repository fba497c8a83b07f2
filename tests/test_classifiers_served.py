"""Imported image classifiers on the real server: the five best classes of photographs are the library's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from classifiers import timm_folder, transformers_folder
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from benchmarks.trained_weights import WeightsMissing, efficientnet_lite0
from build.encoder import make_encoder
from build.head import build_head
from build.repository import check_installed, install
from build.verify import verify
from clipsieve import Client
from common.paths import head_folder
from common.photos import sample_photos
from recipes.schema import Recipe, load_recipe
from serving.embedded import EmbeddedServer, ServerSettings
from training.import_classifier import main

LABELS = ["animal", "building", "cup", "face", "flower", "rocket"]
Scores = Callable[[Image.Image], dict[str, float]]


def by_timm(folder: Path) -> Scores:
    """Scores as timm's model card has it."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)

    @torch.inference_mode()
    def scores(image: Image.Image) -> dict[str, float]:
        probabilities = model(transform(image).unsqueeze(0)).softmax(dim=-1)[0]
        return dict(zip(model.pretrained_cfg["label_names"], probabilities.tolist(), strict=True))

    return scores


def by_transformers(folder: Path) -> Scores:
    """Scores of transformers' pipeline, with the image processor that works on Pillow's images."""
    from transformers import AutoImageProcessor, pipeline  # pyright: ignore[reportMissingImports] (its extra)

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    classify: Any = pipeline("image-classification", model=str(folder), image_processor=processor, device="cpu")
    return lambda image: {answer["label"]: answer["score"] for answer in classify(image, top_k=None)}


def make_classifier(name: str, folder: Path) -> Scores:
    if name == "trained":
        try:
            return by_timm(efficientnet_lite0(folder))
        except WeightsMissing as reason:
            pytest.skip(str(reason))
    if name == "timm":
        return by_timm(timm_folder(folder, LABELS))
    return by_transformers(transformers_folder(folder, name, LABELS))


def write_recipe(name: str, library: str, folder: Path) -> Recipe:
    path = folder / "recipe.yaml"
    encoder = {"library": library, "model": name, "weights": str(folder / "classifier"), "normalize": False}
    head = {"name": "kind", "task": "multiclass", "classifier": {}}
    path.write_text(yaml.safe_dump({"name": name, "description": "", "encoder": encoder, "heads": [head]}))
    return load_recipe(path)


@pytest.fixture(scope="module", params=["timm", "vit", "convnextv2", "trained"])
def served(request, tmp_path_factory) -> Iterator[tuple[str, Recipe, Scores, Client]]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "classifier").mkdir()
    scores = make_classifier(request.param, folder / "classifier")
    library = "timm" if request.param in ("timm", "trained") else "transformers"
    recipe = write_recipe(request.param, library, folder)
    make_encoder(recipe)
    main(["--recipe", str(folder / "recipe.yaml")])
    build_head(head_folder(recipe, recipe.heads[0]), recipe.build.opset)
    install(recipe, folder / "models")
    assert check_installed(recipe, folder / "models") == []
    with (
        EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server,
        Client(server.grpc_url) as client,
    ):
        yield request.param, recipe, scores, client


def best(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda label: -scores[label])[:5]


def test_the_five_best_classes_are_the_librarys(served):
    _, _, by_library, client = served
    (head,) = client.heads()
    photos = sample_photos()
    answers = list(client.score([photo.read_bytes() for photo in photos]))
    for photo, answer in zip(photos, answers, strict=True):
        expected = by_library(Image.open(photo).convert("RGB"))
        found = dict(zip(head.labels, np.asarray(answer.scores).tolist(), strict=True))
        for label in set(found) & set(expected):  # two of ImageNet's names are those of two classes each
            assert found[label] == pytest.approx(expected[label], abs=1e-4)
        assert best(found) == best(expected), photo.name


def test_the_chain_is_verified(served):
    _, recipe, _, _ = served
    (full,) = verify(recipe)
    assert full.passed
    assert full.heads[0].decisions_changed == 0


def test_a_trained_classifier_knows_what_it_sees(served):
    name, _, _, client = served
    if name != "trained":
        pytest.skip("of random weights")
    (head,) = client.heads()
    photos = {photo.stem: photo for photo in sample_photos()}
    coffee, chelsea = client.score([photos[name].read_bytes() for name in ("coffee", "chelsea")])

    def first(answer) -> str:
        return head.labels[int(np.argmax(answer.scores))]

    assert first(coffee) == "espresso"
    assert "cat" in first(chelsea)
