"""Reads ONNX models without their weights, replaces their nodes and writes them whole."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from build.errors import PrecisionError

MAX_FILE_BYTES = 2_000_000_000
"""The most bytes of weights in one file; more are written beside it, as protobuf reads no message of 2 GiB."""

MATRIX_OPS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operators that multiply matrices; the others move numbers or treat them one by one."""

_SMALL_BYTES = 1024


def read_model(path: Path) -> onnx.ModelProto:
    """The model, with large external data left on disk, its Constant nodes made initializers, without stored shapes.

    Raises:
        PrecisionError: it has subgraphs or functions of its own.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    nested = [node.name for node in graph.node if any(a.type == a.GRAPH for a in node.attribute)]
    if nested or model.functions:
        raise PrecisionError(f"{path}: subgraphs and functions are not converted, found {nested or 'functions'}")
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
    for tensor in filter(uses_external_data, graph.initializer):
        if 8 * math.prod(tensor.dims) <= _SMALL_BYTES:  # shapes and axes, which shape inference reads
            _load(tensor, path.parent)
    del graph.value_info[:]
    return model


def with_nodes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """The model with these nodes, and those initializers that they read, of its own and `constants` (emptied)."""
    new = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    new.producer_name, new.producer_version = model.producer_name, model.producer_version
    new.graph.name = model.graph.name
    new.graph.node.extend(nodes)
    new.graph.input.extend(model.graph.input)
    new.graph.output.extend(model.graph.output)
    used = {name for node in nodes for name in node.input}
    new.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    for name in list(constants):
        array = constants.pop(name)  # two copies of one weight at a time, not of all
        if name in used:
            new.graph.initializer.append(numpy_helper.from_array(array, name))
    return new


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name → element type, of every tensor."""
    graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def dimensions(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor name → its dimensions, 0 for a free one, of every computed tensor whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    return {name: [dim.dim_value for dim in dims] for name, dims in shapes.items() if dims}


def downstream_of(graph: onnx.GraphProto, kinds: Iterable[str]) -> list[bool]:
    """Tell for each node whether it is of these kinds, or computes from the output of one that is."""
    reached: set[str] = set()
    flags = []
    for node in graph.node:
        flags.append(node.op_type in kinds or not reached.isdisjoint(node.input))
        if flags[-1]:
            reached.update(node.output)
    return flags


def write_model(model: onnx.ModelProto, folder: Path, target: Path, max_file_bytes: int) -> None:
    """Check the model and write it, as one file or with `<target name>.data`; whole or not at all.

    Args:
        model: its external data, if any, lies in `folder`.
    """
    onnx.checker.check_model(_without_weights(model), full_check=True)
    for tensor in filter(uses_external_data, model.graph.initializer):
        _load(tensor, folder)
    data = target.with_name(f"{target.name}.data")
    is_large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > max_file_bytes
    beside = {"save_as_external_data": True, "location": data.name, "size_threshold": _SMALL_BYTES} if is_large else {}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        written = Path(partial) / target.name
        onnx.save_model(model, written, **beside)
        target.unlink(missing_ok=True)  # never a model beside another's weights
        data.unlink(missing_ok=True)
        for path in (written.with_name(data.name), written) if is_large else (written,):
            path.replace(target.with_name(path.name))


def _load(tensor: onnx.TensorProto, folder: Path) -> None:
    """Bring a tensor's external data into it."""
    load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers as inputs, small enough for the checker and for shape inference."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if uses_external_data(tensor) or len(tensor.raw_data) > _SMALL_BYTES:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            light.graph.initializer.append(tensor)
    return light
