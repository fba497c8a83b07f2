"""A few-node stand-in for an encoder's ONNX file: `pixels` UINT8 [B, 4, 4, 3] → `embedding` FP32 [B, 3]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from common.manifest import Tensor

INPUT = Tensor(name="pixels", dtype="UINT8", dims=[4, 4, 3])
OUTPUT = Tensor(name="embedding", dtype="FP32", dims=[3])


def write_graph(path: Path, *, cast_first: bool = True) -> None:
    """The mean colour of each image; UINT8 goes into a Cast first, or into a Transpose, as TensorRT refuses."""
    axes = numpy_helper.from_array(np.array([1, 2] if cast_first else [2, 3], np.int64), "axes")
    cast = helper.make_node("Cast", ["pixels" if cast_first else "moved"], ["values"], name="to_float", to=1)
    moved = helper.make_node("Transpose", ["pixels"], ["moved"], name="permute", perm=[0, 3, 1, 2])
    mean = helper.make_node("ReduceMean", ["values", "axes"], ["embedding"], name="mean", keepdims=0)
    graph = helper.make_graph(
        [cast, mean] if cast_first else [moved, cast, mean],
        "tiny",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["batch", 3])],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
