"""Image classifiers of timm and transformers, taken apart: their own pixels and logits, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from classifiers import LEVELS, SIZE, TRANSFORMERS, timm_folder, transformers_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from test_timm_tower import picture, png

from build.export import name_the_output
from build.parity import _steps
from build.reachable import missing_weights
from build.tower import Tower, load_tower
from build.weights import source_sha256
from common.pixels import served_transform
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError, parse_recipe
from recipes.serving_section import Serving


def encoder_of(folder: Path | None, library: str = "transformers", **part: Any) -> Encoder:
    data = {"library": library, "model": "mine", "weights": folder, "normalize": False}
    return Encoder.model_validate(data | part)


def write_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module", params=["timm vit", "timm convnext", "timm mobilenet", *TRANSFORMERS])
def tower(request, tmp_path_factory) -> tuple[str, Path, Tower]:
    folder = tmp_path_factory.mktemp("classifier")
    library, _, model = request.param.rpartition(" ")
    if model == "convnext":
        timm_folder(folder, model="convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    elif model == "mobilenet":
        timm_folder(folder, model="mobilenetv3_small_050")
    elif library == "timm":
        timm_folder(folder)
    else:
        transformers_folder(folder, request.param)
    return request.param, folder, load_tower(encoder_of(folder, library or "transformers"))


def library_logits(name: str, folder: Path, inputs: torch.Tensor) -> torch.Tensor:
    """Logits of the model as its library loads it."""
    if name.startswith("timm"):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(inputs)
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()(inputs).logits


@torch.inference_mode()
def test_backbone_and_last_layer_are_the_whole_model(tower):
    name, folder, loaded = tower
    size = loaded.preprocessing.image_size
    inputs = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(3))
    expected = library_logits(name, folder, inputs)
    assert loaded.classifier is not None
    np.testing.assert_allclose(loaded.classifier.logits(inputs), expected, atol=2e-5)
    layer = loaded.classifier.layer(np.zeros((1, 4), np.float32))
    features = loaded.visual(inputs)
    assert features.shape == (3, layer.weight.shape[1])
    np.testing.assert_allclose(features.numpy() @ layer.weight.T + layer.bias, expected, atol=2e-5)
    assert layer.description.labels == LEVELS
    if name != "efficientnet":  # whose features vanish where its weights are random
        assert np.ptp(expected.numpy(), axis=0).max() > 0.01


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 65), (65, 100), (77, 64)])
def test_served_pixels_are_the_librarys_own(tower, size):
    """Sizes whose crops leave out an odd number of pixels among them."""
    _, _, loaded = tower
    before, after = _steps(loaded)
    expected: Any = picture(*size)
    for step in before:
        expected = step(expected)
    served = served_transform([loaded.preprocessing], Serving())(png(picture(*size)))
    np.testing.assert_array_equal(served, np.asarray(expected))
    tensor: Any = expected
    for step in after:
        tensor = step(tensor)
    mean, std = (np.array(values)[:, None, None] for values in (loaded.preprocessing.mean, loaded.preprocessing.std))
    np.testing.assert_allclose((served.transpose(2, 0, 1) / 255 - mean) / std, tensor.numpy(), atol=1e-5)


def test_a_tensor_that_a_model_calls_embedding_does_not_take_the_outputs_name():
    """As SigLIP's positions, for which the exporter wrote a graph that is not valid."""
    inside = onnx.helper.make_node("Relu", ["pixels"], ["embedding"])
    last = onnx.helper.make_node("Neg", ["embedding"], ["embedding_of_pictures"])
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("pixels", last.output[0])
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([inside, last], "g", values[:1], values[1:]))
    name_the_output(model)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["embedding"]
    assert model.graph.node[1].input[0] == model.graph.node[0].output[0] != "embedding"


def test_what_transformers_crops_has_a_name_of_its_own(tmp_path):
    tower = load_tower(encoder_of(transformers_folder(tmp_path, "dinov2")))
    assert tower.preprocessing.id == "exact-shortest-bicubic-64-resize75-floor"
    assert load_tower(encoder_of(timm_folder(tmp_path / "t"), "timm")).preprocessing.crop == "round"


def test_a_large_convnext_of_transformers_is_squashed(tmp_path):
    folder = transformers_folder(tmp_path, "convnextv2", size={"shortest_edge": 384})
    assert load_tower(encoder_of(folder)).preprocessing.id == "exact-squash-bicubic-384"


def test_a_model_of_timm_in_transformers_wrapper_is_loaded_by_timm(tmp_path):
    """Such is the layout of Freepik/nsfw_image_detector."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make transformers")
    own = timm_folder(tmp_path / "timm")
    write_json(own / "config.json", model_args={"img_size": SIZE, "depth": 2})  # the wrapper gives the rest itself
    config = transformers.TimmWrapperConfig.from_pretrained(own)
    wrapped = transformers.TimmWrapperForImageClassification.from_pretrained(own, config=config)
    wrapped.save_pretrained(tmp_path / "wrapped")
    assert json.loads((tmp_path / "wrapped" / "config.json").read_text())["model_type"] == "timm_wrapper"
    loaded = load_tower(encoder_of(tmp_path / "wrapped", "timm"))
    assert loaded.weights_sha256 == load_tower(encoder_of(own, "timm")).weights_sha256
    assert loaded.classifier is not None
    assert loaded.classifier.description.labels == LEVELS
    with pytest.raises(RecipeError, match="the folder is timm's, the recipe says library: transformers; take timm"):
        load_tower(encoder_of(tmp_path / "wrapped"))


def test_a_folder_counts_with_its_configs(tmp_path):
    encoder = encoder_of(timm_folder(tmp_path), "timm")
    before = source_sha256(encoder)
    write_json(tmp_path / "config.json", label_names=["a", "b", "c", "d"])
    assert source_sha256(encoder) != before


def test_a_timm_folder_may_be_taken_at_another_size(tmp_path):
    tower = load_tower(encoder_of(timm_folder(tmp_path), "timm", image_size=96))
    assert tower.preprocessing.image_size == 96


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_config_without_labels_still_gives_features(tmp_path, library):
    folder = timm_folder(tmp_path, [], num_classes=4, img_size=SIZE, depth=1) if library == "timm" else None
    tower = load_tower(encoder_of(folder or transformers_folder(tmp_path, labels=[]), library))
    assert tower.classifier is not None
    assert tower.classifier.description.labels is None


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [(None, None), ("multi_label_classification", True), ("single_label_classification", False)],
)
def test_the_kind_of_output_is_read_from_the_config(tmp_path, problem_type, expected):
    folder = transformers_folder(tmp_path, config={"problem_type": problem_type})
    classifier = load_tower(encoder_of(folder)).classifier
    assert classifier is not None
    assert classifier.description.multilabel is expected


class _RunsCode:
    def __reduce__(self):
        return print, ("code of a checkpoint ran",)


def without_safetensors(folder: Path, write) -> None:
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin")


def test_tensors_in_a_pickle_are_loaded_and_code_is_refused(tmp_path, capsys):
    folder = timm_folder(tmp_path / "timm")
    sha256 = load_tower(encoder_of(folder, "timm")).weights_sha256
    state = load_file(folder / "model.safetensors")
    without_safetensors(folder, lambda path: torch.save(state, path))
    assert load_tower(encoder_of(folder, "timm")).weights_sha256 == sha256
    torch.save(state | {"extra": _RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"pytorch_model\.bin: refused, because it holds more than tensors"):
        load_tower(encoder_of(folder, "timm"))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1})[:9])
    with pytest.raises(RecipeError, match=r"pytorch_model\.bin: (not a PyTorch file of tensors|refused)"):
        load_tower(encoder_of(folder, "timm"))
    assert "code of a checkpoint ran" not in capsys.readouterr().out


def shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "best.safetensors")


def other_shapes(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "head" not in name}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "config.json").unlink(), "the folder has no config.json, which an image classifier's has"),
        (lambda f: (f / "config.json").write_text("["), r"config\.json: not readable as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json: a mapping of keys is expected, found a list"),
        (lambda f: (f / "config.json").write_text('{"a": 1}'), "neither timm's .* nor transformers' .*the keys a"),
        (shard, r"in several files, listed in model\.safetensors\.index\.json; .*max_shard_size"),
        (other_name, r"none of model\.safetensors, .*found best\.safetensors: rename .* to model\.safetensors"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            r"the folder has none of model\.safetensors, pytorch_model\.bin$",
        ),
        (other_shapes, r"model\.safetensors: not a checkpoint of vit_tiny_patch16_224:\n +missing keys \(2"),
        (lambda f: write_json(f / "config.json", architecture="vit_teeny"), "'vit_teeny' is unknown to timm .*nearest"),
        (lambda f: write_json(f / "config.json", label_names=["a"]), "has 1 labels, the model's last layer 4 outputs"),
        (
            lambda f: write_json(f / "config.json", num_classes=5, model_args={"img_size": SIZE, "depth": 2}),
            "other shape",
        ),
    ],
)
def test_a_timm_folder_that_cannot_be_loaded_says_why(tmp_path, spoil, expected):
    timm_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RecipeError, match=expected):
        load_tower(encoder_of(tmp_path, "timm"))


def test_a_folder_of_another_architecture_than_the_recipe_names_is_refused(tmp_path):
    with pytest.raises(
        RecipeError, match=r"encoder.model is convnext_tiny, the folder .* holds a vit_tiny_patch16_224"
    ):
        load_tower(encoder_of(timm_folder(tmp_path), "timm", model="convnext_tiny"))


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: without(f, PROCESSOR), r"has no preprocessor_config\.json, which says how pictures are prepared"),
        (lambda f: write_json(f / PROCESSOR, resample=0), "only bilinear .* and bicubic .* are served"),
        (lambda f: write_json(f / PROCESSOR, resample=1), "only bilinear .* and bicubic .* are served"),
        (lambda f: write_json(f / PROCESSOR, do_resize=False), "do_resize is off"),
        (lambda f: write_json(f / PROCESSOR, size={"height": 64, "width": 48}), "only square inputs"),
        (lambda f: write_json(f / PROCESSOR, size={"shortest_edge": 64}), "pictures keep their shapes"),
        (lambda f: write_json(f / PROCESSOR, size={"height": 80, "width": 80}), "cannot take pictures of 80 x 80"),
        (lambda f: write_json(f / "config.json", model_type="vitt"), "no image classifier of model_type 'vitt'"),
        (lambda f: write_json(f / "config.json", model_type="bert"), "no image classifier of model_type 'bert'"),
        (lambda f: write_json(f / "config.json", hidden_size=48), "not a checkpoint of mine"),
        (lambda f: write_json(f / "config.json", num_hidden_layers=3), "missing keys"),
        (lambda f: write_json(f / "config.json", id2label={"0": "a", "1": "b"}), "not a checkpoint of mine"),
        (shard, "in several files"),
    ],
)
def test_a_transformers_folder_that_cannot_be_loaded_says_why(tmp_path, spoil, expected):
    transformers_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RecipeError, match=expected):
        load_tower(encoder_of(tmp_path))


def test_scores_that_are_not_of_one_last_layer_are_refused(tmp_path):
    """A distilled model averages two."""
    timm_folder(tmp_path, model="deit_tiny_distilled_patch16_224", img_size=SIZE, depth=1)
    with pytest.raises(RecipeError, match="not those of one linear layer at its end"):
        load_tower(encoder_of(tmp_path, "timm"))


def recipe_of(encoder: dict[str, Any]):
    head = {"name": "nsfw", "classifier": {}}
    return parse_recipe({"name": "any", "description": "", "encoder": encoder | {"normalize": False}, "heads": [head]})


@pytest.mark.parametrize(
    ("encoder", "files"),
    [
        ({"library": "timm", "model": "Marqo/nsfw-image-detection-384"}, "config.json, model.safetensors from"),
        (
            {"library": "transformers", "model": "Falconsai/nsfw_image_detection", "revision": "a" * 40},
            r"config.json, preprocessor_config.json, model.safetensors from https://.*/tree/a{40},",
        ),
        ({"library": "timm", "model": "a/b", "weights": "weights/nowhere"}, "config.json, model.safetensors from"),
    ],
)
def test_without_a_network_the_files_to_fetch_are_named(encoder, files):
    if encoder["library"] == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed: make transformers")
    (problem,) = missing_weights(recipe_of(encoder))
    name = encoder["model"].partition("/")[2]
    assert f"put them into weights/{name}/" in problem
    assert f"\n  encoder:\n    weights: weights/{name}" in problem
    with pytest.raises(RecipeError, match=f"On a machine with a network fetch {files}"):
        load_tower(recipe_of(encoder).encoder)


def test_a_library_that_is_not_installed_is_named_before_anything_is_fetched(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    recipe = recipe_of({"library": "transformers", "model": "Falconsai/nsfw_image_detection"})
    assert missing_weights(recipe) == [
        "library: transformers needs the package transformers, an extra; install it with: make transformers"
    ]
    with pytest.raises(RecipeError, match="install it with: make transformers"):
        load_tower(recipe.encoder)


def test_a_folder_of_transformers_that_is_not_there_is_described():
    pytest.importorskip("transformers", reason="transformers is not installed: make transformers")
    with pytest.raises(
        RecipeError, match=r"no folder .*weights/none; with library: transformers it is one with config"
    ):
        load_tower(encoder_of(Path("weights/none")))


def test_a_copy_of_a_repository_has_the_repositorys_id(tmp_path):
    data = {"library": "timm", "model": "Marqo/nsfw-image-detection-384"}
    encoder = recipe_of(data | {"weights": str(timm_folder(tmp_path))}).encoder
    assert encoder.id == recipe_of(data).encoder.id == "timm-marqo-nsfw-image-detection-384-unnormalized"
    assert load_tower(encoder).source.hub == "Marqo/nsfw-image-detection-384"
    shutil.rmtree(tmp_path)


def test_pictures_that_are_no_rgb_are_taken_as_rgb(tmp_path):
    tower = load_tower(encoder_of(transformers_folder(tmp_path)))
    grey = picture(90, 70).convert("L")
    expected: Any = grey
    for step in _steps(tower)[0]:
        expected = step(expected)
    file = io.BytesIO()
    grey.save(file, "PNG")
    served = served_transform([tower.preprocessing], Serving())(file.getvalue())
    np.testing.assert_array_equal(served, np.asarray(expected))
    assert isinstance(expected, Image.Image)
