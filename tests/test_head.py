"""build.head: the ONNX graph computes the manifest's layers, and misfits are refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from artefacts import encoder_manifest, write_head
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file

from build.head import (
    build_head,
    calibration_of,
    folded,
    head_model,
    main,
    read_weights,
    scores_by_numpy,
    threshold_array,
)
from build.rank_lookup import Lookup, lookup_nodes
from common.manifest import (
    Calibration,
    Dropout,
    Linear,
    ManifestError,
    Prevalence,
    RankLookup,
    Relu,
    Standardize,
    Threshold,
    compare_fingerprints,
    read_head,
    sha256_of,
    write_manifest,
)
from recipes.errors import run_step
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
    assert run_step("build.head", lambda: main(["--recipe", str(tmp_path / "other.yaml")])) == 1
    assert "embed_dim: the head was trained on 512, the encoder is 128" in capsys.readouterr().err


LABELS = ["a", "b", "c"]
LOOKUP = RankLookup(columns=[5, 1, 3], lengths=[300, 4, 0], low="low", high="high", ranks="ranks")


def lookup_weights(seed=3):
    """300 intervals of one to a few floats, 4 wide ones, and a column without any."""
    rng = np.random.default_rng(seed)
    low = np.sort(rng.uniform(-0.2, 0.2, 300).astype(np.float32))
    high = np.minimum(low + np.float32(1e-6), np.append(np.nextafter(low[1:], np.float32(-1)), 1)).astype(np.float32)
    wide = np.array([-0.1, -0.05, 0, 0.05], np.float32)
    return {
        "low": np.concatenate([low, wide]),
        "high": np.concatenate([high, wide + np.float32(0.02)]),
        "ranks": np.concatenate([rng.permutation(300) + 1, [4, 3, 2, 1]]).astype(np.float32),
    }


def write_layers(folder, layers, weights, *, labels=LABELS, width=8, **changes):
    """A head of any layers on an encoder with `width` values."""
    base = write_head(folder, encoder_manifest(), CLASSES)
    save_file(weights, folder / "head.safetensors")
    manifest = base.model_copy(
        update={
            "layers": layers,
            "labels": labels,
            "class_names": labels,
            "task": "multilabel",
            "thresholds": [[] for _ in labels],
            "encoder": base.encoder.model_copy(update={"embed_dim": width}),
            "weights_sha256": sha256_of(folder / "head.safetensors"),
            **changes,
        }
    )
    write_manifest(manifest, folder / "head.json")
    return manifest


def layers_of(kind):
    """Layers and tensors of a head on 8 values with 3 logits."""
    rng = np.random.default_rng(0)
    linear = {"w": rng.standard_normal((3, 8)).astype("f4"), "b": rng.standard_normal(3).astype("f4")}
    hidden = {"hw": rng.standard_normal((8, 8)).astype("f4"), "hb": rng.standard_normal(8).astype("f4")}
    standard = {"mean": rng.standard_normal(8).astype("f4"), "std": rng.uniform(50, 90, 8).astype("f4")}
    first = Linear(weight="hw", bias="hb")
    last = Linear(weight="w", bias="b")
    return {
        "linear": ([last], linear),
        "two linear": ([first, last], linear | hidden),
        "standardize": ([Standardize(mean="mean", std="std"), last], linear | standard),
        "relu and dropout": ([first, Relu(), Dropout(p=0.5), last], linear | hidden),
        "rank lookup": (
            [LOOKUP, Standardize(mean="mean", std="std"), first, Relu(), last],
            linear | hidden | standard | lookup_weights(),
        ),
    }[kind]


def lookup_vectors(count=200, seed=1):
    """Values at, beside and between the ends of the intervals."""
    tables, rng = lookup_weights(), np.random.default_rng(seed)
    vectors = rng.uniform(-0.25, 0.25, (count, 8)).astype(np.float32)
    ends = np.concatenate([tables["low"], tables["high"]])
    near = np.concatenate([ends, np.nextafter(ends, np.float32(9)), np.nextafter(ends, np.float32(-9))])
    vectors[: count // 2, [1, 5]] = rng.choice(near, (count // 2, 2))
    return vectors


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("kind", ["linear", "two linear", "standardize", "relu and dropout", "rank lookup"])
def test_torch_numpy_and_onnx_agree(tmp_path, kind, activation):
    layers, weights = layers_of(kind)
    manifest = write_layers(tmp_path, layers, weights, activation=activation)
    build_head(tmp_path, opset=18)
    embeddings = lookup_vectors()
    with torch.inference_mode():
        logits = head_from_layers(layers, weights).eval()(torch.from_numpy(embeddings)).double()
    applied = {"sigmoid": torch.sigmoid, "softmax": lambda x: torch.softmax(x, 1), "none": lambda x: x}
    expected = applied[activation](logits).numpy()
    by_numpy = scores_by_numpy(folded(manifest, weights), activation, embeddings)
    np.testing.assert_allclose(by_numpy, expected, atol=2e-5)
    np.testing.assert_allclose(run(tmp_path, embeddings)["score"], expected, atol=2e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_ranks_are_those_of_the_intervals_by_hand(batch):
    weights, x = lookup_weights(), lookup_vectors(batch)

    def rank(value, start, stop):
        inside = [i for i in range(start, stop) if weights["low"][i] <= value <= weights["high"][i]]
        return weights["ranks"][inside[0]] if inside else 0

    expected = x.copy()
    expected[:, 5] = [rank(value, 0, 300) for value in x[:, 5]]
    expected[:, 1] = [rank(value, 300, 304) for value in x[:, 1]]
    expected[:, 3] = 0
    by_torch = head_from_layers([LOOKUP], weights)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(by_torch, expected)
    ends = np.cumsum(LOOKUP.lengths)[:-1]
    lookup = Lookup(LOOKUP.columns, *(np.split(weights[name], ends) for name in ("low", "high", "ranks")))
    np.testing.assert_array_equal(lookup(x), expected)
    np.testing.assert_array_equal(served_lookup(lookup, x), expected)


def served_lookup(lookup, x):
    nodes, constants, output = lookup_nodes(lookup, "x", x.shape[1], "lookup_")
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", x.shape[1]]) for name in ("x", output)
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lookup", values[:1], values[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


def test_a_lookup_that_knows_nothing_clears_its_columns():
    empty = np.zeros(0, np.float32)
    x = lookup_vectors(5)
    cleared = served_lookup(Lookup([2, 4], [empty] * 2, [empty] * 2, [empty] * 2), x)
    np.testing.assert_array_equal(cleared[:, [2, 4]], 0)
    np.testing.assert_array_equal(cleared[:, [0, 1, 3, 5, 6, 7]], x[:, [0, 1, 3, 5, 6, 7]])


@pytest.mark.parametrize("kind", ["linear", "relu and dropout"])
def test_calibration_and_prevalence_act_on_the_logits(tmp_path, kind):
    layers, weights = layers_of(kind)
    calibration = Calibration(method="platt", scale=[0.5, 2, 1], offset=[0.1, -1, 3])
    prevalence = Prevalence(training=0.4, target=0.01)
    write_layers(tmp_path, layers, weights, calibration=calibration, prevalence=prevalence, calibrated=True)
    build_head(tmp_path, opset=18)
    embeddings = lookup_vectors()
    with torch.inference_mode():
        logits = head_from_layers(layers, weights).eval()(torch.from_numpy(embeddings)).numpy()
    shift = np.log(0.01 / 0.99) - np.log(0.4 / 0.6)
    expected = 1 / (1 + np.exp(-(logits * calibration.scale + calibration.offset + shift)))
    np.testing.assert_allclose(run(tmp_path, embeddings)["score"], expected, atol=1e-6)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Gemm") == (1 if kind == "linear" else 2)  # it costs nothing


def test_the_prevalence_correction_is_bayes_rule(tmp_path):
    """A calibrated 0.4 at a training share of 0.4 is the new share itself."""
    layers, weights = layers_of("linear")
    prevalence = Prevalence(training=0.4, target=0.02)
    shift = calibration_of(write_layers(tmp_path, layers, weights, prevalence=prevalence))
    assert shift is not None
    logit = np.log(0.4 / 0.6)
    assert 1 / (1 + np.exp(-(logit + shift.offset[0]))) == pytest.approx(0.02)


def test_every_label_has_thresholds_of_its_own(tmp_path):
    layers, weights = layers_of("linear")
    points = [[0.2, 0.5, 0.8], [], [0.6]]
    thresholds = [[Threshold(value=value, operating_point="fixed") for value in row] for row in points]
    write_layers(tmp_path, layers, weights, thresholds=thresholds)
    build_head(tmp_path, opset=18)
    outputs = run(tmp_path, 10 * unit_vectors(300, 8))
    for label, row in enumerate(points):
        expected = sum((outputs["score"][:, label] >= np.float32(value)).astype(int) for value in row)
        assert np.array_equal(outputs["decision"][:, label], np.broadcast_to(expected, 300))
    assert set(outputs["decision"][:, 0]) == {0, 1, 2, 3}


def _backwards(weights):
    return {name: weights[name][::-1].copy() if name in ("low", "high") else weights[name] for name in weights}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": [Linear(weight="hw", bias="hb"), LOOKUP]}, "rank_lookup layer must be the first"),
        ({"layers": [LOOKUP.model_copy(update={"columns": [5, 1, 8]})]}, r"columns \[5, 1, 8\] of 8"),
        ({"layers": [LOOKUP.model_copy(update={"columns": [5, 1, 1]})]}, r"columns \[5, 1, 1\] of 8"),
        ({"layers": [LOOKUP.model_copy(update={"lengths": [300, 3, 0]})]}, r"lengths \[300, 3, 0\]"),
        ({"layers": [LOOKUP.model_copy(update={"low": "lowest"})]}, "names the tensor 'lowest'"),
        ({"weights": _backwards}, "must ascend"),
        ({"calibration": Calibration(method="platt", scale=[1], offset=[0])}, "calibration has 1 scales"),
        ({"thresholds": [[]]}, "thresholds of 1 labels, but has 3"),
        ({"prevalence": Prevalence(training=0.5, target=1.5)}, r"prevalence.target is 1.5"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path, changes, expected):
    layers, weights = layers_of("rank lookup")
    weights = changes.pop("weights", dict)(weights)
    manifest = write_layers(tmp_path, changes.pop("layers", layers), weights, **changes)
    with pytest.raises(ManifestError, match=expected):
        folded(manifest, weights)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": "vit-l-14-openai"}, "id: the head was trained on 'vit-l-14-openai', the encoder is 'vit-b-32"),
        ({"normalize": False}, "normalize: the head was trained on False, the encoder is True"),
        ({"preprocessing": "exact-squash-bicubic-224"}, "preprocessing: the head was trained on 'exact-squash"),
    ],
)
def test_a_published_head_of_another_encoder_or_normalisation_is_refused(tmp_path, changes, expected):
    """The head's authors named the encoder, not its weights' sum: then the name must agree."""
    base = write_head(tmp_path, encoder_manifest(), CLASSES)
    published = base.encoder.model_copy(update={"weights_sha256": None})
    compare_fingerprints(base.model_copy(update={"encoder": published}), encoder_manifest())
    foreign = base.model_copy(update={"encoder": published.model_copy(update=changes)})
    with pytest.raises(ManifestError, match=expected):
        compare_fingerprints(foreign, encoder_manifest())
