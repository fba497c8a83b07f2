"""training.import_classifier: an encoder's own last layer becomes a head of the same probabilities, or nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from classifiers import LEVELS
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from build.head import build_head
from common import paths
from common.classifier_layer import FILE, ClassifierLayer, LayerDescription, read_classifier_layer
from common.manifest import EncoderManifest, ManifestError, WeightsSource, read_head, sha256_of, write_manifest
from recipes.errors import run_step
from recipes.schema import Recipe, RecipeError, parse_recipe
from training.errors import StepError
from training.import_classifier import import_classifier, main, verified
from training.mlflow_model import ServedHead

ENCODER = {"library": "timm", "model": "mine", "weights": "weights/mine", "normalize": False}
PICTURES = 5


def recipe_of(**head: Any) -> Recipe:
    entry = {"name": "level", "classifier": {}} | head
    return parse_recipe({"name": "imported", "description": "", "encoder": ENCODER, "heads": [entry]})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


class Imported:
    """A tiny encoder with a classifier's last layer beside it, in a folder of its own artefacts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "ARTIFACTS", folder)
        self.folder = paths.encoder_folder(recipe_of())
        rng = np.random.default_rng(7)
        self.embeddings = rng.normal(size=(PICTURES, EMBED_DIM)).astype(np.float32) * 3
        self.weight = rng.normal(size=(4, EMBED_DIM)).astype(np.float32)
        self.bias = rng.normal(size=4).astype(np.float32)
        self.logits = self.embeddings @ self.weight.T + self.bias
        self.write()

    def write(self, labels: list[str] | None = LEVELS, multilabel: bool | None = None, off: float = 0) -> None:
        """Write the encoder's files; `labels` are of the first outputs."""
        count = 4 if labels is None else len(labels)
        self.logits = (self.embeddings @ self.weight.T + self.bias)[:, :count] + off
        description = LayerDescription(
            library="timm",
            labels=labels,
            multilabel=multilabel,
            source=WeightsSource(encoder="mine", file="model.safetensors"),
        )
        layer = ClassifierLayer(description, self.weight[:count], self.bias[:count], self.logits)
        self.encoder: EncoderManifest = write_tiny_encoder(self.folder)
        (self.folder / FILE).write_bytes(layer.to_bytes())
        self.encoder = self.encoder.model_copy(update={"classifier_sha256": sha256_of(self.folder / FILE)})
        write_manifest(self.encoder, self.folder / "encoder.json")
        np.savez(self.folder / "verification.npz", embeddings=self.embeddings, torch=self.embeddings)

    def scores(self, recipe: Recipe) -> np.ndarray:
        """Import the recipe's head, build it, and run the file that would be served."""
        folder = import_classifier(recipe, recipe.heads[0]).parent
        build_head(folder, opset=18)
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        scores = np.asarray(session.run(["score"], {"embedding": self.embeddings})[0])
        np.testing.assert_allclose(ServedHead(folder).scores(self.embeddings), scores, atol=1e-5)
        return scores


@pytest.fixture
def imported(tmp_path, monkeypatch) -> Imported:
    return Imported(tmp_path, monkeypatch)


def test_classes_are_the_models_own(imported):
    recipe = recipe_of(task="multiclass")
    np.testing.assert_allclose(imported.scores(recipe), softmax(imported.logits), atol=1e-6)
    manifest = read_head(paths.head_folder(recipe, recipe.heads[0]))
    assert manifest.class_names == manifest.labels == LEVELS
    assert (manifest.activation, manifest.calibrated, manifest.made_by) == ("softmax", False, "imported")
    assert manifest.encoder == imported.encoder.fingerprint()
    assert [[point.value for point in row] for row in manifest.thresholds] == [[0.5]] * 4
    source = manifest.training.classifier
    assert source is not None
    assert (source.library, source.file, source.labels) == ("timm", "model.safetensors", LEVELS)
    assert (source.pictures, manifest.training.calibration) == (
        5,
        "the model's own last layer, without labelled pictures",
    )


def test_class_names_put_them_in_another_order(imported):
    names = ["high", "neutral", "medium", "low"]
    expected = softmax(imported.logits)[:, [LEVELS.index(name) for name in names]]
    np.testing.assert_allclose(imported.scores(recipe_of(task="multiclass", class_names=names)), expected, atol=1e-6)


def test_of_two_classes_the_score_is_the_last_ones(imported):
    imported.write(["NSFW", "SFW"])
    expected = softmax(imported.logits)
    np.testing.assert_allclose(imported.scores(recipe_of()), expected[:, 1:], atol=1e-6)
    turned = recipe_of(class_names=["SFW", "NSFW"], thresholds=[0.3, 0.8])
    np.testing.assert_allclose(imported.scores(turned), expected[:, :1], atol=1e-6)
    manifest = read_head(paths.head_folder(turned, turned.heads[0]))
    assert (manifest.labels, manifest.activation) == (["NSFW"], "sigmoid")
    assert [[point.value for point in row] for row in manifest.thresholds] == [[0.3, 0.8]]


def test_a_pair_of_sigmoids_gives_that_of_the_last(imported):
    imported.write(["safe", "nsfw"], multilabel=True)
    np.testing.assert_allclose(imported.scores(recipe_of()), sigmoid(imported.logits[:, 1:]), atol=1e-6)


def test_one_output_is_the_second_of_two_classes(imported):
    imported.write(["nsfw"])
    head = recipe_of(class_names=["safe", "nsfw"])
    np.testing.assert_allclose(imported.scores(head), sigmoid(imported.logits), atol=1e-6)
    with pytest.raises(StepError, match=r"one output, nsfw; say task: binary and class_names: \[other name, nsfw\]"):
        import_classifier(recipe_of(), recipe_of().heads[0])


@pytest.mark.parametrize("multilabel", [None, True])
def test_several_labels_have_a_sigmoid_each(imported, multilabel):
    imported.write(multilabel=multilabel)
    np.testing.assert_allclose(imported.scores(recipe_of(task="multilabel")), sigmoid(imported.logits), atol=1e-6)


def test_outputs_of_one_name_get_their_numbers(imported):
    imported.write(["crane", "dog", "crane", "cat"])
    recipe = recipe_of(task="multiclass")
    imported.scores(recipe)
    manifest = read_head(paths.head_folder(recipe, recipe.heads[0]))
    assert manifest.labels == ["crane (0)", "dog", "crane (2)", "cat"]


AT_LEAST_MEDIUM = {"nsfw": ["medium", "high"]}


@pytest.mark.parametrize("combine", [AT_LEAST_MEDIUM, AT_LEAST_MEDIUM | {"safe": ["neutral", "low"]}])
def test_combined_probabilities_are_added(imported, combine):
    """The score is the probability of "at least medium"."""
    head = recipe_of(class_names=["safe", "nsfw"], classifier={"combine": combine})
    expected = softmax(imported.logits)[:, 2:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(imported.scores(head), expected, atol=1e-6)


def test_classes_that_are_not_combined_stay_themselves(imported):
    head = recipe_of(
        task="multiclass", class_names=["neutral", "some", "high"], classifier={"combine": {"some": ["low", "medium"]}}
    )
    probabilities = softmax(imported.logits)
    expected = np.stack([probabilities[:, 0], probabilities[:, 1:3].sum(axis=1), probabilities[:, 3]], axis=1)
    np.testing.assert_allclose(imported.scores(head), expected, atol=1e-6)


def test_a_scale_is_a_label_for_each_of_its_steps(imported):
    combine = {"low": ["low", "medium", "high"], "medium": ["medium", "high"]}
    head = recipe_of(task="multilabel", class_names=["low", "medium", "high"], classifier={"combine": combine})
    probabilities = softmax(imported.logits)
    expected = np.stack([probabilities[:, at:].sum(axis=1) for at in (1, 2, 3)], axis=1)
    np.testing.assert_allclose(imported.scores(head), expected, atol=1e-6)


def test_large_logits_are_added_without_overflow(imported):
    imported.weight *= 200
    imported.write()
    head = recipe_of(class_names=["safe", "nsfw"], classifier={"combine": AT_LEAST_MEDIUM})
    assert np.abs(imported.logits).max() > 500
    expected = softmax(imported.logits.astype(np.float64))[:, 2:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(imported.scores(head), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "layer", "expected"),
    [
        ({}, {"labels": None}, r"no names for its 4 outputs; add label_names to it in a local copy"),
        ({}, {}, "a binary head has two classes, the model 4: neutral, low, medium, high; say task: multiclass"),
        (
            {"task": "multiclass", "class_names": ["a", "b"]},
            {},
            r"class_names are \['a', 'b'\], the model's neutral, low",
        ),
        ({"task": "multiclass"}, {"multilabel": True}, "trained with a sigmoid of each output.*say task: multilabel"),
        ({"task": "multilabel"}, {"multilabel": False}, "trained with a softmax.*say task: multiclass"),
        ({"classifier": {"combine": {"b": ["hihg"]}}}, {}, "'hihg', no class of the model: neutral"),
        ({"classifier": {"combine": AT_LEAST_MEDIUM}}, {"multilabel": True}, "adds probabilities of a softmax"),
        ({"classifier": {"combine": {"b": ["low"], "a": ["neutral"]}}}, {}, "medium in 0"),
        ({"classifier": {"combine": {"b": ["low"], "a": LEVELS}}}, {}, "low in 2"),
        ({"classifier": {"combine": {"b": LEVELS}}}, {}, "a is made of no class of the model"),
        ({"task": "multilabel", "classifier": {"combine": {"b": LEVELS}}}, {}, "a is made of none, or of all"),
        ({"task": "multiclass", "classifier": {"combine": {"b": ["low"]}}}, {}, "a is made of no class of the model"),
        ({"operating_points": ["f1"], "task": "multiclass"}, {}, "takes labelled pictures"),
    ],
)
def test_what_the_model_cannot_give_is_refused(imported, head, layer, expected):
    imported.write(**layer)
    if "classifier" in head:
        names = list(head["classifier"]["combine"])
        head = {"class_names": ["a", *names] if "a" not in names else ["a", "b"]} | head
    recipe = recipe_of(**head)
    with pytest.raises(StepError, match=expected):
        import_classifier(recipe, recipe.heads[0])
    assert not paths.head_folder(recipe, recipe.heads[0]).exists()


def test_a_pair_of_other_logits_than_the_model_is_refused(imported):
    largest = float(np.abs(imported.logits).max())
    assert largest > 1
    imported.write(off=0.9e-4 * largest)
    layer = read_classifier_layer(imported.folder, imported.encoder)
    assert verified(layer, imported.folder).max_difference == pytest.approx(0.9e-4 * largest, rel=0.05)
    for off in (1.2e-4 * largest, np.nan):
        imported.write(off=off)
        with pytest.raises(StepError, match=r"beside those of the whole model.*at most 0\.0001 of that is allowed"):
            import_classifier(recipe_of(task="multiclass"), recipe_of(task="multiclass").heads[0])


def test_an_encoder_of_no_classifier_has_no_layer(imported):
    write_manifest(imported.encoder.model_copy(update={"classifier_sha256": None}), imported.folder / "encoder.json")
    with pytest.raises(ManifestError, match="the encoder is of no image classifier"):
        import_classifier(recipe_of(), recipe_of().heads[0])


def test_another_layer_than_the_encoders_is_refused(imported):
    (imported.folder / FILE).write_bytes(b"{}")
    with pytest.raises(ManifestError, match=r"classifier\.safetensors: missing, or not the file that encoder\.json"):
        import_classifier(recipe_of(), recipe_of().heads[0])


def test_what_is_imported_already_stays(imported, capsys):
    recipe = recipe_of(task="multiclass")
    path = import_classifier(recipe, recipe.heads[0])
    before = path.stat().st_mtime_ns
    assert import_classifier(recipe, recipe.heads[0]) == path
    assert path.stat().st_mtime_ns == before
    assert "imported before, nothing to do" in capsys.readouterr().err


def test_the_step_makes_the_recipes_heads(imported, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: imported\ndescription: ''\nheads: [{name: level, task: multiclass, classifier: {}}]\n"
        "encoder: {library: timm, model: mine, weights: weights/mine, normalize: false}\n"
    )
    main(["--recipe", str(recipe)])
    assert capsys.readouterr().out.strip().endswith("imported/heads/level/head.json")
    main(["--recipe", "demo"])
    assert "no heads of an image classifier" in capsys.readouterr().err
    assert run_step("x", lambda: main(["--recipe", "demo", "--head", "demo"])) == 1
    assert "head demo has no classifier; add `classifier: {}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "head", "expected"),
    [
        ({"normalize": True}, {}, "head level has classifier: its layer takes features as they are.*normalize: false"),
        ({"library": "open_clip"}, {}, "open_clip, whose models have no classifier"),
        ({"weights": None}, {}, "the encoder is no image classifier; name a folder"),
        ({"layers": [0, 2]}, {}, r"hidden layers, \[0, 2\]"),
        ({"library": "transformers", "layers": [1]}, {}, "layers are for open_clip and timm"),
        ({"library": "transformers", "image_size": 96}, {}, "a model of transformers has the size of its own config"),
        ({"library": "transformers", "weights": None}, {}, "takes a repository of the hub as model"),
        ({"library": "transformers", "pretrained": "a"}, {}, "pretrained is a tag of open_clip's or timm's"),
        ({"model": "a/b", "pretrained": "x"}, {}, "is a repository, which has no tags"),
        ({}, {"task": "regression", "class_names": ["a"]}, "classifier is for classes, and a regression has none"),
        ({}, {"source": "x"}, "give classifier or source, not both"),
        ({}, {"prompts": {"a": "x", "b": "y"}, "class_names": ["a", "b"]}, "give classifier or prompts, not both"),
        ({}, {"fit": {"hidden_sizes": [8]}}, "fit.hidden_sizes is for weights that are trained"),
        ({}, {"classifier": {"combine": {"a": ["x"]}}}, "combine makes classes, which class_names must list"),
        (
            {},
            {"classifier": {"combine": {"c": ["x"]}}, "class_names": ["a", "b"]},
            r"combine names c, which is none of class_names \['a', 'b'\]",
        ),
        (
            {},
            {"classifier": {"combine": {"b": []}}, "class_names": ["a", "b"]},
            "lists different classes of the model, found",
        ),
        ({}, {"class_names": ["a", "a"]}, "class_names must differ"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(encoder, head, expected):
    data = {"name": "x", "description": "", "encoder": ENCODER | encoder}
    with pytest.raises(RecipeError, match=expected):
        parse_recipe(data | {"heads": [{"name": "level", "classifier": {}} | head]})
