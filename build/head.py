"""Trained head → ONNX: layers, activation, thresholds and revision in one graph.

    python -m build.head --recipe demo

Reads artifacts/heads/<name>/head.json and head.safetensors, writes model.onnx beside them:
`embedding` FP32 [B, D] → `score` FP32 [B, L], `decision` INT32 [B, L], `revision` INT64 [B, 1].
Neighbouring affine layers are folded, so an all-linear head becomes one matrix.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from recipes.manifest import (
    HeadManifest,
    Layer,
    Linear,
    ManifestError,
    Relu,
    Standardize,
    Threshold,
    compare_fingerprints,
    read_encoder,
    read_head,
    sha256_of,
    write_atomically,
)
from recipes.paths import encoder_folder, head_folder
from recipes.schema import RecipeError, load_recipe

IR_VERSION = 10  # the newest that onnxruntime 1.19, in the oldest container promised, reads


@dataclass(frozen=True)
class Affine:
    """`y = x @ matrix + offset`: matrix (in, out) float64, offset (out,) float64."""

    matrix: np.ndarray
    offset: np.ndarray

    def then(self, other: Affine) -> Affine:
        return Affine(self.matrix @ other.matrix, self.offset @ other.matrix + other.offset)


def build_head(folder: Path, opset: int) -> HeadManifest:
    """Write `folder`/model.onnx from the head.json and head.safetensors there.

    Raises:
        ManifestError: the manifest or the weights are missing, do not belong together, or do not chain.
    """
    manifest = read_head(folder)
    steps = folded(manifest, read_weights(manifest, folder))
    model = head_model(manifest, steps, opset)
    _check_against_numpy(model, manifest, steps)
    write_atomically(folder / "model.onnx", model.SerializeToString())
    return manifest


def read_weights(manifest: HeadManifest, folder: Path) -> dict[str, np.ndarray]:
    """head.safetensors, refused when it is not the file the manifest was written for."""
    path = folder / "head.safetensors"
    if not path.is_file():
        raise ManifestError(f"{path}: not found, though head.json is there; train the head again")
    found = sha256_of(path)
    if found != manifest.weights_sha256:
        raise ManifestError(
            f"{path}: sha256 is {found}, head.json says {manifest.weights_sha256}; train the head again"
        )
    return load_file(path)


def folded(manifest: HeadManifest, weights: dict[str, np.ndarray]) -> list[Affine | Relu]:
    """The layers as served: dropout left out, neighbouring affine maps multiplied in float64."""
    steps: list[Affine | Relu] = []
    for layer in manifest.layers:
        step = _step(layer, weights)
        if step is None:
            continue
        if isinstance(step, Affine) and steps and isinstance(previous := steps[-1], Affine):
            steps[-1] = previous.then(step)
        else:
            steps.append(step)
    _check_widths(manifest, steps)
    return steps


def scores_by_numpy(steps: list[Affine | Relu], activation: str, embeddings: np.ndarray) -> np.ndarray:
    """Reference: (B, D) → (B, L) float64."""
    values = embeddings.astype(np.float64)
    for step in steps:
        values = values @ step.matrix + step.offset if isinstance(step, Affine) else np.maximum(values, 0)
    return 1 / (1 + np.exp(-values)) if activation == "sigmoid" else values


def head_model(manifest: HeadManifest, steps: list[Affine | Relu], opset: int) -> onnx.ModelProto:
    """The ONNX model of a head; see the module's docstring for its tensors."""
    nodes, constants = [], {}
    value = "embedding"
    for index, step in enumerate(steps):
        if isinstance(step, Affine):
            constants[f"matrix_{index}"] = step.matrix.astype(np.float32)
            constants[f"offset_{index}"] = step.offset.astype(np.float32)
            nodes.append(helper.make_node("Gemm", [value, f"matrix_{index}", f"offset_{index}"], [f"affine_{index}"]))
            value = f"affine_{index}"
        else:
            nodes.append(helper.make_node("Relu", [value], [f"relu_{index}"]))
            value = f"relu_{index}"
    nodes.append(helper.make_node("Sigmoid" if manifest.activation == "sigmoid" else "Identity", [value], ["score"]))
    constants |= {"thresholds": threshold_array(manifest.thresholds), "last_axis": np.array([2], np.int64)}
    nodes += [
        helper.make_node("Unsqueeze", ["score", "last_axis"], ["score_3d"]),  # (B, L, 1)
        helper.make_node("GreaterOrEqual", ["score_3d", "thresholds"], ["passed"]),  # (B, L, T)
        helper.make_node("Cast", ["passed"], ["passed_int"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["passed_int", "last_axis"], ["decision"], keepdims=0),
    ]
    constants |= {
        "revision_constant": np.array([[manifest.revision]], np.int64),
        "batch_axis": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes += [
        helper.make_node("Shape", ["embedding"], ["shape"]),
        helper.make_node("Gather", ["shape", "batch_axis"], ["batch_size"]),
        helper.make_node("Concat", ["batch_size", "one"], ["revision_shape"], axis=0),
        helper.make_node("Expand", ["revision_constant", "revision_shape"], ["revision"]),
    ]
    labels = len(manifest.labels)
    graph = helper.make_graph(
        nodes,
        f"{manifest.name}_head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", manifest.encoder.embed_dim])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", labels]),
            helper.make_tensor_value_info("decision", TensorProto.INT32, ["batch", labels]),
            helper.make_tensor_value_info("revision", TensorProto.INT64, ["batch", 1]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def threshold_array(thresholds: list[list[Threshold]]) -> np.ndarray:
    """(labels, most thresholds of any label) float32, padded with +inf, which no score passes."""
    width = max([1, *(len(row) for row in thresholds)])
    array = np.full((len(thresholds), width), np.inf, np.float32)
    for row, points in zip(array, thresholds, strict=True):
        row[: len(points)] = sorted(point.value for point in points)
    return array


def _step(layer: Layer, weights: dict[str, np.ndarray]) -> Affine | Relu | None:
    """The served form of a layer; None when it acts in training only."""
    try:
        if isinstance(layer, Linear):
            return Affine(weights[layer.weight].astype(np.float64).T, weights[layer.bias].astype(np.float64))
        if isinstance(layer, Standardize):
            scale = 1 / weights[layer.std].astype(np.float64)
            return Affine(np.diag(scale), -weights[layer.mean].astype(np.float64) * scale)
    except KeyError as error:
        raise ManifestError(f"head.json names the tensor {error}, head.safetensors has {sorted(weights)}") from error
    return layer if isinstance(layer, Relu) else None


def _check_widths(manifest: HeadManifest, steps: list[Affine | Relu]) -> None:
    width = manifest.encoder.embed_dim
    for step in steps:
        if not isinstance(step, Affine):
            continue
        if step.matrix.shape[0] != width:
            raise ManifestError(f"head {manifest.name}: a layer takes {step.matrix.shape[0]} values, but gets {width}")
        width = step.matrix.shape[1]
    if width != len(manifest.labels):
        raise ManifestError(f"head {manifest.name}: {width} scores for {len(manifest.labels)} labels {manifest.labels}")


def _check_against_numpy(model: onnx.ModelProto, manifest: HeadManifest, steps: list[Affine | Relu]) -> None:
    """Run the file that will be served on random unit vectors."""
    embeddings = np.random.default_rng(0).standard_normal((64, manifest.encoder.embed_dim))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = np.asarray(session.run(["score"], {"embedding": embeddings})[0])
    expected = scores_by_numpy(steps, manifest.activation, embeddings)
    difference = np.abs(scores - expected).max() / max(1.0, np.abs(expected).max())
    if not difference <= 1e-5:
        raise ManifestError(
            f"head {manifest.name}: ONNX scores differ from the layers' by {difference:.2g} (limit 1e-5)"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.head", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    arguments = parser.parse_args(argv)
    try:
        recipe = load_recipe(arguments.recipe)
        encoder = read_encoder(encoder_folder(recipe.encoder))
        for head in recipe.heads:
            folder = head_folder(head)
            compare_fingerprints(read_head(folder), encoder)
            manifest = build_head(folder, recipe.build.opset)
            print(f"head {manifest.name}: revision {manifest.revision:016x}", file=sys.stderr)
            print(folder / "model.onnx")
    except (RecipeError, ManifestError) as error:
        print(f"build.head: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
