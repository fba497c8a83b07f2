"""An encoder small enough to make in a test: the mean colour of an image times a fixed matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.manifest import EncoderManifest, Parity, Preprocessing, Tensor, sha256_of, write_manifest

EMBED_DIM = 8
IMAGE_SIZE = 16


def write_tiny_encoder(folder: Path, seed: int = 0) -> EncoderManifest:
    """Write model.onnx and encoder.json as build.encoder does; another seed gives another encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(seed).normal(size=(3, EMBED_DIM)).astype(np.float32)
    onnx.save(_mean_colour_model(matrix), folder / "model.onnx")
    manifest = EncoderManifest(
        id="tiny",
        recipe={},
        weights_sha256=f"{seed:064x}",
        source_sha256=[None],
        onnx_sha256=sha256_of(folder / "model.onnx"),
        input=Tensor(name="pixels", dtype="UINT8", dims=[IMAGE_SIZE, IMAGE_SIZE, 3]),
        output=Tensor(name="embedding", dtype="FP32", dims=[EMBED_DIM]),
        preprocessing=[
            Preprocessing(
                image_size=IMAGE_SIZE, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
            )
        ],
        normalize=False,
        precision="fp32",
        parity=Parity(),
        versions={},
    )
    write_manifest(manifest, folder / "encoder.json")
    return manifest


def _mean_colour_model(matrix: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "matrix"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", IMAGE_SIZE, IMAGE_SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", EMBED_DIM])],
        [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(matrix, "matrix")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
