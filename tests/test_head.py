"""build.head: the ONNX graph computes what the manifest's layers say, and refuses what does not fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from artefacts import encoder_manifest, write_head
from safetensors.numpy import load_file, save_file

from build.head import build_head, folded, head_model, main, read_weights, scores_by_numpy, threshold_array
from recipes.manifest import Linear, ManifestError, Standardize, Threshold, read_head, sha256_of, write_manifest
from training.head import head_from_layers

CLASSES = ["safe", "nsfw"]


def unit_vectors(count=200, width=512, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def run(folder, embeddings):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = ["score", "decision", "revision"]
    return dict(zip(names, map(np.asarray, session.run(names, {"embedding": embeddings})), strict=True))


@pytest.fixture
def folder(tmp_path):
    write_head(tmp_path, encoder_manifest(), CLASSES, thresholds=(0.3, 0.7))
    build_head(tmp_path, opset=18)
    return tmp_path


@pytest.mark.parametrize("batch", [1, 2, 200])
def test_onnx_equals_the_torch_module_that_is_trained(folder, batch):
    manifest, weights = read_head(folder), load_file(folder / "head.safetensors")
    module = head_from_layers(manifest.layers, weights).eval()
    embeddings = unit_vectors(batch)
    with torch.inference_mode():
        expected = torch.sigmoid(module(torch.from_numpy(embeddings))).numpy()
    np.testing.assert_allclose(run(folder, embeddings)["score"], expected, atol=1e-6)


def test_decision_counts_the_thresholds_passed(folder):
    outputs = run(folder, unit_vectors())
    expected = (outputs["score"] >= np.float32(0.3)).astype(int) + (outputs["score"] >= np.float32(0.7)).astype(int)
    assert np.array_equal(outputs["decision"], expected)
    assert set(expected.ravel()) == {0, 1, 2}
    assert outputs["decision"].dtype == np.int32


def test_every_row_names_the_revision_of_head_json(folder):
    revision = run(folder, unit_vectors(3))["revision"]
    assert revision.dtype == np.int64
    assert revision.tolist() == [[read_head(folder).revision]] * 3


def test_outputs_are_the_contracts(folder):
    model = onnx.load(folder / "model.onnx")
    assert [value.name for value in model.graph.input] == ["embedding"]
    assert [value.name for value in model.graph.output] == ["score", "decision", "revision"]
    assert model.ir_version == 10


def test_an_all_linear_head_folds_to_one_matrix(tmp_path):
    manifest = write_head(tmp_path, encoder_manifest(), CLASSES)
    weights = load_file(tmp_path / "head.safetensors")
    rng = np.random.default_rng(1)
    weights |= {"mean": rng.standard_normal(512).astype("f4"), "std": rng.uniform(0.5, 2, 512).astype("f4")}
    save_file(weights, tmp_path / "head.safetensors")
    layers = [
        Standardize(mean="mean", std="std"),
        Linear(weight="0.weight", bias="0.bias"),
        Linear(weight="1.weight", bias="1.bias"),
    ]
    changes = {"layers": layers, "weights_sha256": sha256_of(tmp_path / "head.safetensors")}
    write_manifest(manifest.model_copy(update=changes), tmp_path / "head.json")
    build_head(tmp_path, opset=18)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Gemm") == 1
    embeddings = unit_vectors()
    hidden = ((embeddings - weights["mean"]) / weights["std"]) @ weights["0.weight"].T + weights["0.bias"]
    logits = hidden @ weights["1.weight"].T + weights["1.bias"]
    np.testing.assert_allclose(run(tmp_path, embeddings)["score"], 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_threshold_at_the_score_itself_is_passed():
    array = threshold_array(
        [[Threshold(value=0.7, operating_point="b"), Threshold(value=0.3, operating_point="a")], []]
    )
    assert array.tolist() == [[np.float32(0.3), np.float32(0.7)], [np.inf, np.inf]]


def test_raw_scores_have_no_activation(tmp_path):
    manifest = write_head(tmp_path, encoder_manifest(), CLASSES).model_copy(update={"activation": "none"})
    steps = folded(manifest, read_weights(manifest, tmp_path))
    session = onnxruntime.InferenceSession(head_model(manifest, steps, 18).SerializeToString())
    embeddings = unit_vectors()
    served = np.asarray(session.run(["score"], {"embedding": embeddings})[0])
    np.testing.assert_allclose(served, scores_by_numpy(steps, "none", embeddings), atol=1e-4)
    assert served.min() < 0


def test_weights_that_are_not_the_manifests_are_refused(folder):
    write_head(folder.parent / "other", encoder_manifest(), CLASSES, seed=5)
    (folder / "head.safetensors").write_bytes((folder.parent / "other" / "head.safetensors").read_bytes())
    with pytest.raises(ManifestError, match=r"head.safetensors: sha256 is .*, head.json says"):
        build_head(folder, opset=18)


def test_missing_weights_are_named(folder):
    (folder / "head.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"not found, though head\.json is there"):
        build_head(folder, opset=18)


@pytest.mark.parametrize(
    ("layers", "labels", "expected"),
    [
        ([Linear(weight="1.weight", bias="1.bias")], ["nsfw"], "a layer takes 16 values, but gets 512"),
        ([Linear(weight="0.weight", bias="0.bias")], ["nsfw"], r"16 scores for 1 labels \['nsfw'\]"),
        ([Linear(weight="9.weight", bias="0.bias")], ["nsfw"], "names the tensor '9.weight', head.safetensors has"),
    ],
)
def test_layers_that_do_not_chain_are_refused(tmp_path, layers, labels, expected):
    manifest = write_head(tmp_path, encoder_manifest(), CLASSES)
    manifest = manifest.model_copy(update={"layers": layers, "labels": labels})
    with pytest.raises(ManifestError, match=expected):
        folded(manifest, read_weights(manifest, tmp_path))


def test_command_refuses_a_head_of_another_encoder(repository, demo, tmp_path, capsys):
    """The recipe's head folder holds a head that was trained on something else."""
    write_head(tmp_path, encoder_manifest(), demo.heads[0].class_names)
    text = f"""
name: other
description: demo with a foreign head
encoder: {demo.encoder.model_dump(mode="json", exclude_defaults=True)}
heads: [{{name: demo, class_names: {demo.heads[0].class_names}, source: {tmp_path}}}]
"""
    (tmp_path / "other.yaml").write_text(text)
    assert main(["--recipe", str(tmp_path / "other.yaml")]) == 1
    assert "embed_dim: the head was trained on 512, the encoder is 128" in capsys.readouterr().err
