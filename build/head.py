"""Writes a trained or imported head as ONNX: layers, calibration, activation, thresholds and revision in one graph.

    python -m build.head --recipe demo

Reads artifacts/<recipe>/heads/<name>/head.json and head.safetensors, writes model.onnx beside them:
`embedding` FP32 [B, D] → `score` FP32 [B, L], `decision` INT32 [B, L], `revision` INT64 [B, 1].
A head that was trained with loss nll also has `deviation` FP32 [B, 1], the standard deviation of its score.
Neighbouring affine layers are folded, and the calibration with the last of them, so an all-linear head
becomes one matrix.
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

from build.errors import INTERRUPTED
from build.rank_lookup import Lookup, lookup_nodes
from common.manifest import (
    HeadManifest,
    Layer,
    Linear,
    LogSumExp,
    ManifestError,
    RankLookup,
    Relu,
    Standardize,
    Threshold,
    head_weights,
    read_encoder,
    read_head,
    write_atomically,
)
from common.paths import encoder_folder, head_folder
from common.recipe_heads import read_recipe_head
from recipes.arguments import add_recipe_options, recipe_of
from recipes.build_section import MAX_IR_VERSION
from recipes.errors import run_step


@dataclass(frozen=True)
class Affine:
    """An affine map `y = x @ matrix + offset`: matrix (in, out) float64, offset (out,) float64."""

    matrix: np.ndarray
    offset: np.ndarray

    def then(self, other: Affine) -> Affine:
        return Affine(self.matrix @ other.matrix, self.offset @ other.matrix + other.offset)


LARGEST_LOG = 80.0
"""Bound on the logarithm of a deviation, of which the exponential is still finite in float32."""

Step = Affine | Relu | LogSumExp | Lookup
"""One step of a served head, after folding."""


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
    """The tensors of head.safetensors; see `head_weights`."""
    return load_file(head_weights(manifest, folder))


def folded(manifest: HeadManifest, weights: dict[str, np.ndarray]) -> list[Step]:
    """The layers and the calibration as served: dropout left out, neighbouring affine maps multiplied in float64."""
    steps: list[Step] = []
    for layer in manifest.layers:
        step = _step(layer, weights, manifest)
        if isinstance(step, Lookup) and layer is not manifest.layers[0]:
            raise ManifestError(
                f"head {manifest.name}: a rank_lookup layer must be the first, it matches raw embeddings"
            )
        if step is not None:
            _append(steps, step)
    _check_widths(manifest, steps)
    calibration = calibration_of(manifest)
    if calibration is not None:
        _append(steps, calibration)
    return steps


def calibration_of(manifest: HeadManifest) -> Affine | None:
    """Calibration and prevalence as a map of the logits (L → L); None when there is neither."""
    labels = len(manifest.labels)
    scale, offset = np.ones(labels), np.zeros(labels)
    if manifest.calibration is not None:
        scale, offset = np.array(manifest.calibration.scale), np.array(manifest.calibration.offset)
        if not len(scale) == len(offset) == labels:
            raise ManifestError(
                f"head {manifest.name}: calibration has {len(scale)} scales and {len(offset)} offsets for "
                f"{labels} labels {manifest.labels}"
            )
    if manifest.prevalence is not None:
        offset = offset + _log_odds(manifest, "target") - _log_odds(manifest, "training")
    given = manifest.calibration is not None or manifest.prevalence is not None
    return Affine(np.diag(scale), offset) if given else None


def scores_by_numpy(steps: list[Step], activation: str, embeddings: np.ndarray) -> np.ndarray:
    """Reference implementation of a served head: (B, D) → (B, L) float64."""
    values = embeddings.astype(np.float64)
    for step in steps:
        if isinstance(step, Affine):
            values = values @ step.matrix + step.offset
        elif isinstance(step, LogSumExp):
            values = np.stack([np.logaddexp.reduce(values[:, group], axis=1) for group in step.groups], axis=1)
        else:
            values = np.maximum(values, 0) if isinstance(step, Relu) else step(values)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-values))
    if activation == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    return values


def head_model(manifest: HeadManifest, steps: list[Step], opset: int) -> onnx.ModelProto:
    """The ONNX model of a head; see the module's docstring for its tensors."""
    nodes, constants, logits = _layer_nodes(steps, manifest.encoder.embed_dim)
    if manifest.deviation:
        more_nodes, more_constants = _deviation_nodes(logits)
        nodes += more_nodes
        constants |= more_constants
        logits = "value"
    nodes.append(_activation_node(manifest.activation, logits))
    for more_nodes, more_constants in (_decision_nodes(manifest), _revision_nodes(manifest)):
        nodes += more_nodes
        constants |= more_constants
    labels = len(manifest.labels)
    deviation = [helper.make_tensor_value_info("deviation", TensorProto.FLOAT, ["batch", 1])]
    graph = helper.make_graph(
        nodes,
        f"{manifest.name}_head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", manifest.encoder.embed_dim])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", labels]),
            helper.make_tensor_value_info("decision", TensorProto.INT32, ["batch", labels]),
            helper.make_tensor_value_info("revision", TensorProto.INT64, ["batch", 1]),
            *(deviation if manifest.deviation else []),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=MAX_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def threshold_array(thresholds: list[list[Threshold]]) -> np.ndarray:
    """(labels, most thresholds of any label) float32, padded with +inf, which no score passes."""
    width = max([1, *(len(row) for row in thresholds)])
    array = np.full((len(thresholds), width), np.inf, np.float32)
    for row, points in zip(array, thresholds, strict=True):
        row[: len(points)] = sorted(point.value for point in points)
    return array


def _layer_nodes(steps: list[Step], embed_dim: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """Nodes and constants of the layers, and the name of the logits."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    value = "embedding"
    for index, step in enumerate(steps):
        if isinstance(step, Affine):
            constants[f"matrix_{index}"] = step.matrix.astype(np.float32)
            constants[f"offset_{index}"] = step.offset.astype(np.float32)
            nodes.append(helper.make_node("Gemm", [value, f"matrix_{index}", f"offset_{index}"], [f"affine_{index}"]))
            value = f"affine_{index}"
        elif isinstance(step, Relu):
            nodes.append(helper.make_node("Relu", [value], [f"relu_{index}"]))
            value = f"relu_{index}"
        elif isinstance(step, LogSumExp):
            more_nodes, more_constants = _group_nodes(step, value, f"groups_{index}")
            nodes += more_nodes
            constants |= more_constants
            value = f"groups_{index}"
        else:
            lookup, tables, value = lookup_nodes(step, value, embed_dim, f"lookup_{index}_")
            nodes += lookup
            constants |= tables
    return nodes, constants, value


def _group_nodes(step: LogSumExp, value: str, name: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes and constants of a LogSumExp: each group's columns gathered and reduced, the groups side by side."""
    constants = {f"{name}_axis": np.array([1], np.int64)}
    nodes = []
    for at, group in enumerate(step.groups):
        constants[f"{name}_{at}_columns"] = np.array(group, np.int64)
        nodes += [
            helper.make_node("Gather", [value, f"{name}_{at}_columns"], [f"{name}_{at}_members"], axis=1),
            helper.make_node("ReduceLogSumExp", [f"{name}_{at}_members", f"{name}_axis"], [f"{name}_{at}"], keepdims=1),
        ]
    parts = [f"{name}_{at}" for at in range(len(step.groups))]
    return [*nodes, helper.make_node("Concat", parts, [name], axis=1)], constants


def _activation_node(activation: str, logits: str) -> onnx.NodeProto:
    if activation == "softmax":
        return helper.make_node("Softmax", [logits], ["score"], axis=1)
    return helper.make_node("Sigmoid" if activation == "sigmoid" else "Identity", [logits], ["score"])


def _deviation_nodes(outputs: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes and constants that part the layers' two outputs: `value`, and `deviation` from its logarithm."""
    constants = {
        "value_column": np.array([0], np.int64),
        "deviation_column": np.array([1], np.int64),
        "least_log": np.array(-LARGEST_LOG, np.float32),
        "largest_log": np.array(LARGEST_LOG, np.float32),
    }
    nodes = [
        helper.make_node("Gather", [outputs, "value_column"], ["value"], axis=1),
        helper.make_node("Gather", [outputs, "deviation_column"], ["log_deviation"], axis=1),
        helper.make_node("Clip", ["log_deviation", "least_log", "largest_log"], ["finite_log"]),
        helper.make_node("Exp", ["finite_log"], ["deviation"]),
    ]
    return nodes, constants


def _decision_nodes(manifest: HeadManifest) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes and constants of `decision`: the number of its label's thresholds that each score passed."""
    constants = {"thresholds": threshold_array(manifest.thresholds), "last_axis": np.array([2], np.int64)}
    nodes = [
        helper.make_node("Unsqueeze", ["score", "last_axis"], ["score_3d"]),  # (B, L, 1)
        helper.make_node("GreaterOrEqual", ["score_3d", "thresholds"], ["passed"]),  # (B, L, T)
        helper.make_node("Cast", ["passed"], ["passed_int"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["passed_int", "last_axis"], ["decision"], keepdims=0),
    ]
    return nodes, constants


def _revision_nodes(manifest: HeadManifest) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes and constants of `revision`: the manifest's number, once a row."""
    constants = {
        "revision_constant": np.array([[manifest.revision]], np.int64),
        "batch_axis": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Shape", ["embedding"], ["shape"]),
        helper.make_node("Gather", ["shape", "batch_axis"], ["batch_size"]),
        helper.make_node("Concat", ["batch_size", "one"], ["revision_shape"], axis=0),
        helper.make_node("Expand", ["revision_constant", "revision_shape"], ["revision"]),
    ]
    return nodes, constants


def _append(steps: list[Step], step: Step) -> None:
    """Add a step, folded into the one before it when both are affine."""
    if isinstance(step, Affine) and steps and isinstance(previous := steps[-1], Affine):
        steps[-1] = previous.then(step)
    else:
        steps.append(step)


def _log_odds(manifest: HeadManifest, share: str) -> float:
    value = getattr(manifest.prevalence, share)
    if not 0 < value < 1:
        raise ManifestError(f"head {manifest.name}: prevalence.{share} is {value}, must lie between 0 and 1")
    return float(np.log(value / (1 - value)))


def _step(layer: Layer, weights: dict[str, np.ndarray], manifest: HeadManifest) -> Step | None:
    """The served form of a layer; None when it acts in training only."""
    try:
        if isinstance(layer, Linear):
            return Affine(weights[layer.weight].astype(np.float64).T, weights[layer.bias].astype(np.float64))
        if isinstance(layer, Standardize):
            scale = 1 / weights[layer.std].astype(np.float64)
            return Affine(np.diag(scale), -weights[layer.mean].astype(np.float64) * scale)
        if isinstance(layer, RankLookup):
            return _lookup(layer, weights, manifest)
    except KeyError as error:
        raise ManifestError(f"head.json names the tensor {error}, head.safetensors has {sorted(weights)}") from error
    return layer if isinstance(layer, Relu | LogSumExp) else None


def _lookup(layer: RankLookup, weights: dict[str, np.ndarray], manifest: HeadManifest) -> Lookup:
    embed_dim = manifest.encoder.embed_dim
    if not all(0 <= column < embed_dim for column in layer.columns) or len(set(layer.columns)) != len(layer.columns):
        raise ManifestError(
            f"head {manifest.name}: rank_lookup columns {layer.columns} of {embed_dim} embedding values"
        )
    lengths = {name: len(weights[name]) for name in (layer.low, layer.high, layer.ranks)}
    if len(layer.lengths) != len(layer.columns) or set(lengths.values()) != {sum(layer.lengths)}:
        raise ManifestError(
            f"head {manifest.name}: rank_lookup has lengths {layer.lengths} for columns {layer.columns}, "
            f"its tensors have {lengths}"
        )
    ends = np.cumsum(layer.lengths)[:-1]
    low, high, ranks = (np.split(weights[name], ends) for name in lengths)
    lookup = Lookup(layer.columns, low, high, ranks)
    if not lookup.is_ascending:
        raise ManifestError(f"head {manifest.name}: the intervals of a rank_lookup column must ascend, these do not")
    return lookup


def _check_widths(manifest: HeadManifest, steps: list[Step]) -> None:
    width = manifest.encoder.embed_dim
    for step in steps:
        if isinstance(step, LogSumExp):
            if any(not 0 <= column < width for group in step.groups for column in group):
                raise ManifestError(
                    f"head {manifest.name}: log_sum_exp groups {step.groups} of {width} values, numbered from 0"
                )
            width = len(step.groups)
        if not isinstance(step, Affine):
            continue
        if step.matrix.shape[0] != width:
            raise ManifestError(f"head {manifest.name}: a layer takes {step.matrix.shape[0]} values, but gets {width}")
        width = step.matrix.shape[1]
    if manifest.deviation and (len(manifest.labels) > 1 or manifest.activation != "none" or manifest.calibration):
        raise ManifestError(f"head {manifest.name}: a deviation is that of one value, found labels {manifest.labels}")
    if width != len(manifest.labels) + manifest.deviation:
        raise ManifestError(f"head {manifest.name}: {width} scores for {len(manifest.labels)} labels {manifest.labels}")
    if len(manifest.thresholds) != len(manifest.labels):
        raise ManifestError(
            f"head {manifest.name}: thresholds of {len(manifest.thresholds)} labels, but has {len(manifest.labels)}"
        )


def _check_against_numpy(model: onnx.ModelProto, manifest: HeadManifest, steps: list[Step]) -> None:
    """Run the file that will be served on random unit vectors, and on the values in its lookup."""
    embeddings = _check_vectors(manifest.encoder.embed_dim, steps)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = ["score", "deviation"] if manifest.deviation else ["score"]
    scores, *deviations = (np.asarray(output) for output in session.run(outputs, {"embedding": embeddings}))
    scores = np.concatenate([scores, *map(np.log, deviations)], axis=1)
    expected = scores_by_numpy(steps, manifest.activation, embeddings)
    difference = np.abs(scores - expected).max() / max(1.0, np.abs(expected).max())
    if not difference <= 1e-5:
        raise ManifestError(
            f"head {manifest.name}: ONNX scores differ from the layers' by {difference:.2g} (limit 1e-5)"
        )


def _check_vectors(embed_dim: int, steps: list[Step]) -> np.ndarray:
    """(64, embed_dim) unit vectors; with a lookup 256 more, each of its columns at an end of an interval."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((64, embed_dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    if not steps or not isinstance(lookup := steps[0], Lookup):
        return vectors
    boundary = np.tile(vectors, (4, 1))
    for column, low, high in zip(lookup.columns, lookup.low, lookup.high, strict=True):
        if len(low):
            boundary[:, column] = rng.choice(np.concatenate([low, high]), len(boundary))
    return np.concatenate([vectors, boundary])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m build.head", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser)
    parser.add_argument("--head", help="only this one of the recipe's heads")
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    encoder = read_encoder(encoder_folder(recipe))
    for head in recipe.heads if arguments.head is None else [recipe.head(arguments.head)]:
        folder = head_folder(recipe, head)
        read_recipe_head(recipe, head, encoder)
        manifest = build_head(folder, recipe.build.opset)
        print(f"head {manifest.name}: revision {manifest.revision:016x}", file=sys.stderr)
        print(folder / "model.onnx")


if __name__ == "__main__":
    sys.exit(run_step("build.head", main, INTERRUPTED))
