"""The exported encoder equals open_clip's tower, and a build that would not is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
import yaml
from artefacts import encoder_manifest
from safetensors.torch import save_file

import build.encoder
import build.parity
from build.encoder import build_encoder, main, make_encoder, up_to_date
from build.engine import plan_spec
from build.errors import ParityError
from build.export import EncoderGraph, export_onnx
from build.onnx_embeddings import onnx_embeddings
from build.parity import check_embeddings, torch_reference
from build.tensorrt_plan import check_uint8_input
from build.tower import load_tower
from common.manifest import read_encoder
from common.paths import encoder_folder
from common.photos import calibration_pictures, verification_pictures
from recipes.encoder_section import Encoder
from recipes.errors import run_step
from recipes.schema import Recipe, RecipeError, load_recipe, parse_recipe


@pytest.fixture(scope="module")
def tower(demo):
    return load_tower(demo.encoder)


@pytest.fixture(scope="module")
def model(demo, encoder):
    return onnx.load(encoder_folder(demo) / "model.onnx")


def test_tensors_are_the_contracts(encoder, model):
    (pixels,), (embedding,) = model.graph.input, model.graph.output
    assert (pixels.name, pixels.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert (embedding.name, embedding.type.tensor_type.elem_type) == ("embedding", onnx.TensorProto.FLOAT)
    assert [dim.dim_value for dim in pixels.type.tensor_type.shape.dim][1:] == [112, 112, 3]
    assert pixels.type.tensor_type.shape.dim[0].dim_param  # a free batch
    assert encoder.embed_dim == 128


def test_the_file_loads_on_the_oldest_promised_runtime(demo, model):
    assert model.ir_version <= 10  # onnxruntime 1.19
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == demo.build.opset <= 21
    assert not model.functions


def test_layer_normalisation_is_one_node(model):
    assert sum(node.op_type == "LayerNormalization" for node in model.graph.node) == 2 * 4 + 2  # blocks, pre and post


def test_tensorrt_could_read_its_input(demo, encoder):
    """A UINT8 input may feed a Cast and nothing else."""
    check_uint8_input(plan_spec(demo, encoder, encoder_folder(demo) / "model.onnx"))


def test_engine_settings_do_not_rebuild_the_encoder(demo, encoder):
    engine = demo.build.engine.model_copy(update={"workspace_bytes": 2**30})
    changed = demo.model_copy(update={"build": demo.build.model_copy(update={"engine": engine})})
    assert up_to_date(changed, encoder_folder(demo)) == encoder


def test_no_path_of_the_building_machine_is_in_the_file(model):
    text = model.SerializeToString()
    assert b"/site-packages/" not in text
    assert b"clipsieve/build" not in text


def test_the_build_checked_itself(encoder):
    assert encoder.parity.pictures == len(verification_pictures()) > 20
    assert encoder.parity.cosine_min >= 0.99999


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_onnx_equals_torch_at_any_batch(tower, demo, encoder, batch):
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 112, 112, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(encoder_folder(demo) / "model.onnx")
    served = np.asarray(session.run(["embedding"], {"pixels": pixels})[0])
    mean = torch.tensor(tower.preprocessing.mean).view(1, 3, 1, 1)
    std = torch.tensor(tower.preprocessing.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = torch.nn.functional.normalize(tower.visual(inputs), dim=-1).numpy()
    np.testing.assert_allclose(served, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(served, axis=1), 1, atol=1e-5)


def test_wrong_mean_fails_the_build(tower, demo, tmp_path):
    wrong = tower.preprocessing.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    export_onnx(EncoderGraph([replace(tower, preprocessing=wrong)]), 18, tmp_path / "model.onnx")
    reference = torch_reference([tower], demo)
    embeddings = onnx_embeddings(tmp_path / "model.onnx", reference.pixels)
    with pytest.raises(ParityError, match=r"cosine .* is below build.minimum_cosine.fp32 0.99999"):
        check_embeddings(reference, embeddings, demo, "fp32")


def test_wrong_pixels_fail_the_build(tower, demo):
    wrong = tower.preprocessing.model_copy(update={"interpolation": "bilinear"})
    with pytest.raises(ParityError, match="pixel values differ from open_clip's transform"):
        torch_reference([replace(tower, preprocessing=wrong)], demo)


def test_a_failed_check_leaves_the_previous_build(demo, encoder, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ParityError("not equal")

    (tmp_path / "model.onnx").write_bytes(b"previous")
    monkeypatch.setattr(build.parity, "check_embeddings", broken)
    with pytest.raises(ParityError):
        build_encoder(demo, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"previous"


def test_a_second_build_is_skipped_and_a_changed_one_is_not(demo, encoder):
    folder = encoder_folder(demo)
    assert up_to_date(demo, folder) == encoder
    reseeded = demo.model_copy(update={"encoder": demo.encoder.model_copy(update={"seed": 99})})
    assert up_to_date(reseeded, folder) is None


def test_seeded_weights_are_the_same_every_time(tower, demo):
    assert load_tower(demo.encoder).weights_sha256 == tower.weights_sha256
    assert load_tower(demo.encoder.model_copy(update={"seed": 1})).weights_sha256 != tower.weights_sha256


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_local_weights_file_is_loaded(demo, tower, tmp_path, suffix):
    torch.manual_seed(7)
    state = tower_state(demo)
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_tower(demo.encoder.model_copy(update={"weights": path, "seed": 0}))
    expected = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    for name, value in loaded.visual.state_dict().items():
        assert torch.equal(value, expected[name])


def tower_state(demo) -> dict[str, torch.Tensor]:
    """A full CLIP state dict of the demo's shape, with weights of its own."""
    config = demo.encoder.open_clip_config
    return {name: value.contiguous() for name, value in open_clip.CLIP(**config).state_dict().items()}


@pytest.mark.parametrize(
    ("encoder_part", "expected"),
    [
        ({"model": "ViT-B-33"}, "unknown to open_clip; nearest: ViT-B-32"),
        ({"model": "ViT-B-32", "pretrained": "opena1"}, "is no tag of ViT-B-32; known: openai, laion400m_e31"),
        ({"model": "ViT-B-32", "weights": "/nowhere/b32.pt"}, "no file /nowhere/b32.pt"),
        (
            {"model": "ViT-B-32", "pretrained": "openai"},
            "Use the model 'ViT-B-32-quickgelu'",
        ),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "openai"}, "put it into weights/"),
    ],
)
def test_towers_that_cannot_be_loaded_say_what_to_do(encoder_part, expected):
    with pytest.raises(RecipeError, match=expected):
        load_tower(Encoder.model_validate(encoder_part))


def test_a_file_that_is_no_checkpoint_is_refused(demo, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RecipeError, match=r"weights.pt: not a checkpoint of clipsieve-demo-vit"):
        load_tower(demo.encoder.model_copy(update={"weights": path}))


def test_a_checkpoint_of_another_tower_is_refused(demo, tmp_path):
    config = demo.encoder.open_clip_config | {"embed_dim": 64}
    torch.save(open_clip.CLIP(**config).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(RecipeError, match="not a checkpoint of clipsieve-demo-vit"):
        load_tower(demo.encoder.model_copy(update={"weights": tmp_path / "weights.pt"}))


def test_command_prints_the_manifest_and_explains_errors(encoder, demo, capsys):
    assert run_step("build.encoder", lambda: main(["--recipe", "demo"])) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(encoder_folder(demo) / "encoder.json")
    assert "pixels bit-equal" in output.err
    assert run_step("build.encoder", lambda: main(["--recipe", "nope"])) == 1
    assert "unknown recipe 'nope'" in capsys.readouterr().err


def test_default_recipes_preprocessing_is_what_the_texts_say():
    """The checked-in configs are written for ViT-B-32; open_clip's own config must agree."""
    tower = load_tower(load_recipe("nsfw-vit-b-32").encoder.model_copy(update={"pretrained": None, "decode": "exact"}))
    assert [tower.preprocessing] == encoder_manifest().preprocessing


def test_manifest_lies_beside_the_model(demo, encoder):
    assert read_encoder(encoder_folder(demo)) == encoder


# ---- other precisions ----


def in_precision(demo: Recipe, precision: str, **build: Any) -> Recipe:
    data = demo.model_dump(mode="json", exclude_defaults=True)
    return parse_recipe(data | {"build": {"precision": precision, **build}})


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_made_from_the_fp32_file_and_found_again(demo, encoder, precision, monkeypatch):
    recipe = in_precision(demo, precision)
    full, reduced = make_encoder(recipe)
    assert full == encoder
    assert (reduced.precision, reduced.made_from) == (precision, full.onnx_sha256)
    assert reduced.fingerprint() == full.fingerprint()  # a head fits both
    assert getattr(recipe.build.minimum_cosine, precision) <= reduced.parity.cosine_min < 1 - 1e-9
    folder = encoder_folder(recipe)
    assert folder.name.endswith(f"-{precision}")
    assert (folder / "model.onnx").stat().st_size < 0.65 * (encoder_folder(demo) / "model.onnx").stat().st_size
    monkeypatch.setattr(build.encoder, "reduce_encoder", None)  # nothing is made again
    assert make_encoder(recipe) == [full, reduced]


def test_a_precision_below_its_limit_is_not_installed(demo, encoder, capsys, tmp_path):
    strict = in_precision(demo, "int8", minimum_cosine={"int8": 1.0})
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(strict.model_dump(mode="json", exclude_defaults=True)))
    before = sorted(encoder_folder(strict).glob("**/*"))
    assert run_step("build.encoder", lambda: main(["--recipe", str(tmp_path / "strict.yaml")])) == 1
    assert "between torch and int8 ONNX is below build.minimum_cosine.int8 1.0" in capsys.readouterr().err
    assert sorted(encoder_folder(strict).glob("**/*")) == before


def test_calibration_and_verification_share_no_picture():
    verified = {picture.data for picture in verification_pictures()}
    assert len(verified) == len(verification_pictures())
    assert not verified.intersection(picture.data for picture in calibration_pictures())
