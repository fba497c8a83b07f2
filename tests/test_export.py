"""The exported graph: TensorRT's demands, several encoders in one, and large weights in a file beside it."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from build.encoder import build_encoder, main, make_encoder
from build.errors import GraphError
from build.export import EncoderGraph, attention, check_graph, export_onnx, scale_on_the_query
from build.tower import Tower, load_tower, pixel_dims, views_of
from common.manifest import onnx_files, read_encoder, sha256_of
from common.paths import ROOT, encoder_folder
from recipes.schema import Recipe, RecipeError, parse_recipe


@pytest.fixture(scope="module")
def tower(demo: Recipe) -> Tower:
    return load_tower(demo.encoder)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


# ---- attention and layer normalisation ----


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torchs(scale):
    query, key, value = torch.randn(3, 2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
    torch.testing.assert_close(attention(query, key, value, scale=scale), expected)


def test_attention_with_a_mask_is_torchs():
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 16, generator=generator).unbind()
    mask = torch.randn(9, 9, generator=generator)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attention(query, key, value, mask), expected)


def test_torchs_attention_is_its_own_again_after_an_export():
    before = torch.nn.functional.scaled_dot_product_attention
    zeros = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError), scale_on_the_query():
        torch.nn.functional.scaled_dot_product_attention(zeros, zeros, zeros, is_causal=True)
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_the_exporters_own_attention_is_refused(tower, tmp_path, monkeypatch):
    """The exporter's own definition multiplies both query and key by the root of the scale."""
    monkeypatch.setattr("build.export.attention", torch.nn.functional.scaled_dot_product_attention)
    with pytest.raises(GraphError, match="a matrix product with a scale on both sides"):
        export_onnx(EncoderGraph([tower]), 18, tmp_path / "model.onnx")


def layer_norm_taken_apart(*, rms: bool) -> onnx.ModelProto:
    """Variance (or mean square) → epsilon → root → division, as exporters write it before opset 17."""
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 8])
    nodes = [
        helper.make_node("ReduceMean", ["values"], ["mean"]),
        helper.make_node("Identity" if rms else "Sub", ["values"] if rms else ["values", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["deviation"], name="root"),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
    ]
    out = helper.make_tensor_value_info("normal", TensorProto.FLOAT, ["batch", 8])
    return helper.make_model(helper.make_graph(nodes, "norm", [values], [out]))


def test_a_layer_normalisation_taken_apart_is_refused():
    with pytest.raises(GraphError, match="root: a layer normalisation taken apart"):
        check_graph(layer_norm_taken_apart(rms=False))


def test_a_root_mean_square_norm_has_no_node_of_its_own_and_passes():
    check_graph(layer_norm_taken_apart(rms=True))


# ---- weights beside the file ----


def test_large_weights_lie_beside_the_file_and_compute_the_same(tower, tmp_path, monkeypatch):
    graph = EncoderGraph([tower])
    for folder, limit in {"one": 10**9, "two": 10**6}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setattr("build.export.MAX_FILE_BYTES", limit)
        export_onnx(graph, 18, tmp_path / folder / "model.onnx")
    one, two = tmp_path / "one" / "model.onnx", tmp_path / "two" / "model.onnx"
    assert [path.name for path in onnx_files(one)] == ["model.onnx"]
    assert [path.name for path in onnx_files(two)] == ["model.onnx", "model.onnx.data"]
    assert two.stat().st_size < one.stat().st_size / 5
    assert operators(one) == operators(two)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    first, second = (onnxruntime.InferenceSession(path).run(None, {"pixels": pixels})[0] for path in (one, two))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_the_sum_is_of_both_files(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    alone = sha256_of(*onnx_files(path))
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    assert sha256_of(*onnx_files(path)) != alone


def test_a_large_encoder_is_built_and_found_again(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("build.export.MAX_FILE_BYTES", 10**6)
    manifest = build_encoder(demo, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "encoder.json", "model.onnx", "model.onnx.data", "verification.npz",
    ]  # fmt: skip
    assert manifest.onnx_sha256 == sha256_of(*onnx_files(tmp_path / "model.onnx"))


# ---- several encoders ----


def two_encoders(demo: Recipe, *, squash: bool = True) -> Recipe:
    """The demo's tower, and a smaller one of its own that may also see its picture otherwise."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
    }
    if not squash:
        config["vision_cfg"]["image_size"] = 112
    first = demo.encoder.model_dump(mode="json", exclude_defaults=True)
    second = {"model": "clipsieve-test-small", "open_clip_config": config, "seed": 3, "normalize": False}
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "two-encoders"}
    return parse_recipe(data | {"encoder": {"concatenate": [first, second]}})


def test_embeddings_follow_one_another_and_each_tower_sees_its_own_view(demo, tmp_path):
    recipe = two_encoders(demo)
    towers = [load_tower(encoder) for encoder in recipe.encoder.towers]
    towers[1] = replace(towers[1], preprocessing=towers[1].preprocessing.model_copy(update={"resize_mode": "squash"}))
    assert pixel_dims(views_of(towers)) == [112 + 64, 112, 3]
    export_onnx(EncoderGraph(towers), 18, tmp_path / "both.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 176, 112, 3), dtype=np.uint8)
    both = np.asarray(onnxruntime.InferenceSession(tmp_path / "both.onnx").run(None, {"pixels": pixels})[0])
    assert both.shape == (3, 128 + 32)
    views = pixels[:, :112], pixels[:, 112:, :64]
    for tower, view, columns in zip(towers, views, (slice(0, 128), slice(128, None)), strict=True):
        export_onnx(EncoderGraph([tower]), 18, tmp_path / "one.onnx")
        alone = np.asarray(onnxruntime.InferenceSession(tmp_path / "one.onnx").run(None, {"pixels": view})[0])
        np.testing.assert_allclose(both[:, columns], alone, atol=2e-6)


def test_towers_that_want_the_same_pixels_share_them(demo):
    towers = [load_tower(encoder) for encoder in two_encoders(demo, squash=False).encoder.towers]
    assert pixel_dims(views_of(towers)) == [112, 112, 3]


def test_a_recipe_of_two_encoders_is_built_and_found_again(demo, tmp_path, monkeypatch):
    recipe = two_encoders(demo)
    (manifest,) = make_encoder(recipe)
    assert manifest.id == "clipsieve-demo-vit-random-20+clipsieve-test-small-random-3-unnormalized"
    assert manifest.embed_dim == 160
    assert not manifest.normalize
    assert [view.image_size for view in manifest.preprocessing] == [112, 64]
    assert manifest.fingerprint().preprocessing == "exact-shortest-bicubic-112+exact-shortest-bicubic-64"
    monkeypatch.setattr("build.encoder.build_encoder", None)  # nothing is built again
    assert make_encoder(recipe) == [manifest]
    assert read_encoder(encoder_folder(recipe)) == manifest


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({}, "model is required, or concatenate"),
        ({"concatenate": [{"model": "ViT-B-32"}]}, "two or more different encoders"),
        ({"concatenate": [{"model": "ViT-B-32"}, {"model": "ViT-B-32"}]}, "two or more different encoders"),
        ({"model": "ViT-B-32", "concatenate": [{"model": "a"}, {"model": "b"}]}, "put model into each of them"),
        ({"concatenate": [{"model": "a"}, {"concatenate": [{"model": "b"}, {"model": "c"}]}]}, "side by side"),
        ({"concatenate": [{"model": "a"}, {"modle": "b"}]}, "encoder.concatenate.1.modle: unknown key; did you mean"),
        ({"model": "ViT-B-32", "revision": "0" * 40}, "revision is of the hub's file of pretrained"),
    ],
)
def test_a_wrong_list_of_encoders_is_explained(demo, encoder, message):
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"encoder": encoder}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(data)


# ---- what cannot be built ----


@pytest.mark.parametrize("opset", [17, 22, 25])
def test_an_opset_that_a_promised_runtime_does_not_read_is_refused(demo, opset):
    data = demo.model_dump(mode="json") | {"build": {"opset": opset}}
    with pytest.raises(RecipeError, match=rf"build.opset: must be 18 .* to 21 .*onnxruntime 1.19.*found {opset}"):
        parse_recipe(data)


def full_disk() -> None:
    """No file of this process may grow over 64 KiB; the write fails as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def test_a_full_disk_installs_nothing_and_says_so(tmp_path):
    environment = {"CLIPSIEVE_ARTIFACTS": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "build.encoder", "--recipe", "demo"],
        cwd=ROOT, env=environment, preexec_fn=full_disk, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "build.encoder: nothing was installed: cannot be written (File too large); the size of a file is limited"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_list_and_recipe_exclude_one_another(capsys):
    with pytest.raises(SystemExit):
        main(["--recipe", "demo", "--list"])
    assert "not allowed with" in capsys.readouterr().err
