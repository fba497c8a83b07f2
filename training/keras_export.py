"""Runs inside a throwaway TensorFlow environment: reads an AutoKeras SavedModel, and scores with it.

    python keras_export.py export SAVED_MODEL tensors.npz
    python keras_export.py score SAVED_MODEL vectors.npz scores.npz

`training.published_keras` starts it; it imports nothing of this project. tensors.npz holds the kernels and
biases in order, the standardisation, and for each categorical column its vocabulary of texts with
their ranks. Scores are the original graph's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource] (throwaway environment)
from tensorflow.core.protobuf import saved_model_pb2  # pyright: ignore[reportMissingModuleSource]

_BATCH = 1024


def export(saved_model: Path, target: Path) -> None:
    graph = _graph(saved_model)
    function = _served_function(graph)
    loaded = tf.saved_model.load(str(saved_model)).variables
    variables = {each.name: each.numpy() for each in loaded if each is not None}  # lookup tables stand there as None
    arrays = {
        "mean": variables["normalization/mean:0"],
        "variance": variables["normalization/variance:0"],
        "smallest_std": _constant(function, "Maximum"),
        "columns": np.array(_categorical_columns(function)),
    }
    for number, name in enumerate(name for name in variables if name.endswith("/kernel:0")):
        arrays[f"kernel_{number}"] = variables[name]
        arrays[f"bias_{number}"] = variables[name.replace("/kernel:0", "/bias:0")]
    for number, (tokens, ranks) in enumerate(_vocabularies(graph)):
        arrays[f"tokens_{number}"] = tokens
        arrays[f"ranks_{number}"] = ranks
    np.savez(target, **arrays)


def score(saved_model: Path, vectors: Path, target: Path) -> None:
    """Every array of vectors.npz, (n, embed_dim) float32, scored by the serving signature: (n,) float32."""
    signature = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    scores = {}
    for name, array in np.load(vectors).items():
        batches = (array[start : start + _BATCH] for start in range(0, len(array), _BATCH))
        outputs = [next(iter(signature(tf.constant(batch, tf.float64)).values())).numpy()[:, 0] for batch in batches]
        scores[name] = np.concatenate(outputs)
    np.savez(target, **scores)


def _graph(saved_model: Path):
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((saved_model / "saved_model.pb").read_bytes())
    return model.meta_graphs[0].graph_def


def _served_function(graph):
    return next(function for function in graph.library.function if "wrapped_model" in function.signature.name)


def _constant(function, user: str) -> np.ndarray:
    """The constant that the function's one operation of type `user` takes."""
    node = next(node for node in function.node_def if node.op == user)
    constants = {node.name: node for node in function.node_def if node.op == "Const"}
    return next(
        tf.make_ndarray(constants[name.split(":")[0]].attr["value"].tensor)
        for name in node.input
        if name.split(":")[0] in constants
    )


def _categorical_columns(function) -> list[int]:
    """Columns whose values are formatted as text, in the order of their vocabularies."""
    return [int(node.input[0].rsplit(":", 1)[1]) for node in function.node_def if node.op == "AsString"]


def _vocabularies(graph):
    """(tokens, ranks) of each lookup table: the constants that its initialiser takes."""
    constants = {node.name: node for node in graph.node if node.op == "Const"}
    for node in graph.node:
        inputs = [constants[name] for name in node.input if name in constants]
        if len(node.input) == 3 and len(inputs) == 2:
            tokens, ranks = (tf.make_ndarray(constant.attr["value"].tensor) for constant in inputs)
            if tokens.dtype == object:
                yield np.array([token.decode() for token in tokens]), ranks


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"export": export, "score": score}[command](*map(Path, paths))
