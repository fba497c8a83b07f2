"""A head from words beside labelled pictures: calibrated, or trained from its texts and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from stores import Row
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.manifest import EncoderFingerprint, HeadManifest, read_head
from common.text_embeddings import TextEmbeddings, TextsDescription, write_texts
from recipes.errors import run_step
from recipes.prompts import all_texts
from recipes.schema import Recipe, load_recipe
from training import fit, text_head, thresholds
from training.sources import HeadData, Mention, Source, mentions_table, write_source
from training.store import Embedded, Store, store_folder

CLASSES = ["map", "chat", "receipt"]
HEAD = {
    "name": "policy",
    "task": "multiclass",
    "class_names": CLASSES,
    "prompts": {name: f"a {name}" for name in CLASSES},
    "templates": [],
}
AXES = np.eye(EMBED_DIM)[: len(CLASSES)]
"""The directions that the three classes' texts have."""


class Scene:
    """A recipe with a head from words, its texts' embeddings, and a store of labelled pictures."""

    def __init__(self, folder: Path, **head: object) -> None:
        self.path = folder / "words.yaml"
        self.write(**head)
        self.encoder: EncoderFingerprint = write_tiny_encoder(paths.encoder_folder(self.recipe)).fingerprint()
        self.embed_texts(AXES)

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path)

    @property
    def folder(self) -> Path:
        return paths.head_folder(self.recipe, self.recipe.heads[0])

    @property
    def manifest(self) -> HeadManifest:
        return read_head(self.folder)

    def write(self, **head: object) -> None:
        """Write the recipe, with other keys of its head."""
        encoder = {"model": "tiny", "open_clip_config": {"embed_dim": EMBED_DIM}}
        recipe = {"name": "words", "description": "A test.", "encoder": encoder, "heads": [HEAD | head]}
        self.path.write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def embed_texts(self, axes: np.ndarray, logit_scale: float = 10) -> None:
        """Let the texts have these directions, as build.texts would write them."""
        description = TextsDescription(
            encoder=self.encoder,
            texts=all_texts(self.recipe.heads[0]),
            cut=[],
            logit_scale=logit_scale,
            logit_bias=None,
            versions={},
        )
        write_texts(TextEmbeddings(description, axes.astype(np.float32)), paths.texts_file(self.recipe))

    def label(self, count: int, noise: float = 0.6, seed: int = 0) -> None:
        """Put labelled pictures into the store, `count` of each class, around the texts' directions."""
        rng = np.random.default_rng(seed)
        label = np.repeat(np.arange(len(CLASSES)), count)
        vectors = AXES[label] + noise * rng.normal(size=(len(label), EMBED_DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        folder = store_folder(self.recipe)
        rows = [
            Row(f"{n}.png", f"{n}.png", f"{n:064x}", 9, 9, CLASSES[kind], None, vector.astype(np.float32))
            for n, (kind, vector) in enumerate(zip(label, vectors, strict=True))
        ]
        Store(folder, self.encoder).append([Embedded(row.sha256, 9, 9, row.embedding) for row in rows])
        mentions = [Mention(row.key, row.path, row.sha256, row.label, row.split, row.group) for row in rows]
        write_source(HeadData(folder, "words", "policy"), Source("folders /", mentions_table(mentions)), False)

    def fit(self) -> int:
        return run_step("training.fit", lambda: fit.main(["--recipe", str(self.path)]))

    def make(self) -> int:
        return run_step("training.text_head", lambda: text_head.main(["--recipe", str(self.path)]))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    return Scene(tmp_path)


def test_labelled_pictures_calibrate_the_texts_and_leave_their_weights(scene):
    assert scene.make() == 0
    before = load_file(scene.folder / "head.safetensors")
    scene.write(operating_points=["f1"])
    scene.label(60)
    assert scene.fit() == 0
    after, manifest = load_file(scene.folder / "head.safetensors"), scene.manifest
    assert {name: tensor.tolist() for name, tensor in after.items()} == {n: t.tolist() for n, t in before.items()}
    assert manifest.calibration is not None
    assert manifest.calibration.method == "temperature"
    assert manifest.calibrated
    assert manifest.thresholds[0][0].operating_point == "f1"
    assert manifest.training.words is not None
    assert manifest.training.words.weights == "texts"
    assert manifest.training.refit is not None
    assert manifest.training.refit.rows == 0


def test_training_from_the_texts_is_compared_with_them_and_with_plain_training(scene, capsys):
    scene.write(fit={"start": "prompts"})
    scene.label(20)
    assert scene.fit() == 0
    report = json.loads((scene.folder / "report.json").read_text(encoding="utf-8"))
    starts = report["starts"]
    assert list(starts) == ["zero-shot", "few-shot", "plain"]
    assert len({starts[name]["n"] for name in starts}) == 1
    assert starts["few-shot"] == report["metrics"]
    assert scene.manifest.training.words is not None
    assert scene.manifest.training.words.weights == "trained"
    assert "zero-shot" in capsys.readouterr().err


def test_where_texts_are_right_they_are_hardly_left_and_where_wrong_they_are(scene):
    scene.write(fit={"start": "prompts", "near_duplicate_cosine": None})
    scene.label(20, noise=0.4)
    assert scene.fit() == 0
    right = scene.manifest.training.weight_decay
    scene.embed_texts(np.roll(AXES, 1, axis=0))
    assert scene.fit() == 0
    wrong = scene.manifest.training.weight_decay
    assert right is not None
    assert wrong is not None
    assert right > 10 * wrong


def test_fewer_than_five_pictures_of_a_class_are_refused(scene, capsys):
    scene.label(4)
    assert scene.fit() == 1
    assert "takes 5 labelled pictures of each class or more, found map: 4" in capsys.readouterr().err


def test_five_pictures_of_a_class_are_enough_to_train_in_folds(scene):
    scene.write(fit={"start": "prompts"})
    scene.label(5)
    assert scene.fit() == 0
    refit = scene.manifest.training.refit
    assert refit is not None
    assert (refit.folds, refit.rows) == (5, 15 - scene.manifest.training.counts["test"]["map"] * 3)


def test_five_pictures_of_a_class_calibrate_the_texts_and_choose_thresholds(scene, capsys):
    """The texts are much too sure of themselves; the few pictures say so, and how little they know."""
    scene.embed_texts(AXES, logit_scale=100)
    scene.write(operating_points=["f1"], fit={"near_duplicate_cosine": None})
    scene.label(5)
    assert scene.fit() == 0
    manifest = scene.manifest
    assert manifest.calibrated
    assert manifest.calibration is not None
    assert manifest.calibration.method == "temperature"
    assert 0.01 < manifest.calibration.scale[0] < 0.5
    assert manifest.calibration.offset == [0.0] * 3
    assert [row[0].operating_point for row in manifest.thresholds] == ["f1"] * 3
    assert "is calibrated by few labelled images" in capsys.readouterr().err
    assert "are fewer than 20; so a scale of" in (manifest.training.calibration or "")
    report = json.loads((scene.folder / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["after"]["brier"] < report["calibration"]["before"]["brier"]


def test_texts_that_are_not_embedded_are_named(scene, capsys):
    scene.label(5)
    scene.write(prompts=HEAD["prompts"] | {"map": "an atlas"})
    assert scene.fit() == 1
    assert "text 'an atlas' is not embedded" in capsys.readouterr().err


def test_a_fitted_head_stays_while_its_texts_do(scene, capsys):
    scene.label(20)
    assert scene.fit() == 0
    assert scene.make() == 0
    assert "it stays" in capsys.readouterr().err
    assert scene.manifest.training.counts is not None
    scene.write(prompts=HEAD["prompts"] | {"map": "an atlas"})
    scene.embed_texts(AXES)
    assert scene.make() == 1
    assert "fitted to labelled pictures, from other texts" in capsys.readouterr().err


def test_thresholds_of_texts_alone_are_numbers(scene, capsys):
    assert scene.make() == 0
    scene.write(thresholds=[0.3])
    recipe = scene.recipe
    changed = thresholds.changed_thresholds(scene.folder, scene.manifest, recipe.heads[0])
    assert [point.value for point in changed.manifest.thresholds[0]] == [0.3]
    points = recipe.heads[0].model_copy(update={"thresholds": [], "operating_points": ["f1"]})
    with pytest.raises(thresholds.StepError, match="would need held-out data"):
        thresholds.changed_thresholds(scene.folder, scene.manifest, points)
