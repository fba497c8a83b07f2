"""Converts an fp32 encoder to fp16 for GPUs: TensorRT's strongly typed networks and onnxruntime's CUDA.

Input `pixels` UINT8 [B, H, W, 3] and output `embedding` FP32 [B, D] stay as they are, and the weights take half the
bytes. Matrix products, convolutions and the nodes between them are fp16. These stay fp32, with explicit Casts: the
scale and offset of the pixels; LayerNormalization, Softmax and every reduction; the L2 normalisation; every node that
feeds only such nodes, hence the residual stream, where trained transformers keep their largest values; and an
elementwise node whose constant does not fit fp16.

GELU and QuickGELU are fp16: x·σ(1.702x) and x·½(1 + erf(x/√2)) overflow for no finite x, because the second factor lies
between 0 and 1. fp32 would cost two Casts over the widest tensor of every block and gain little: on ViT-B/32 (random
weights, every fp16 tensor rounded) 1 - cosine is 2.1e-7 at most with QuickGELU in fp16, 2.0e-7 with it in fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from build.errors import PrecisionError
from build.onnx_model import (
    MATRIX_OPS,
    MAX_FILE_BYTES,
    dimensions,
    downstream_of,
    element_types,
    read_model,
    with_nodes,
    write_model,
)

MAX_ROUNDING = 1e-3
"""Limit of a weight's rounding error in fp16, relative to its length; 0.0002 is usual, and more than the limit means
that its values are too small for fp16."""

# fmt: off
_MOVES = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
})
_ELEMENTWISE = frozenset({
    "Add", "Clip", "Div", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Relu",
    "Sigmoid", "Sub", "Tanh", "Where",
})
# fmt: on
FLOAT16_OPS = MATRIX_OPS | _MOVES | _ELEMENTWISE
"""Operators that may be fp16. Any other stays fp32, so that a new kind of node is safe."""


def to_float16(source: Path, target: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the fp16 form of an fp32 encoder.

    Args:
        source: .onnx file; its weights may lie in external data beside it.
        target: .onnx file. Weights above `max_file_bytes` go into `<target name>.data`.

    Raises:
        PrecisionError: a weight does not fit fp16 (with its name and value), or the graph has subgraphs or
            functions. Nothing is written then.
    """
    model = read_model(source)
    rewriter = _Float16Rewriter(model, source.parent)
    for node, is_float32 in zip(model.graph.node, rewriter.float32_nodes(), strict=True):
        rewriter.add(node, TensorProto.FLOAT if is_float32 else TensorProto.FLOAT16)
    write_model(with_nodes(model, rewriter.nodes, rewriter.constants), source.parent, target, max_file_bytes)


ACCUMULATED = 16
"""Products that a GPU's matrix instruction adds exactly, before it rounds the sum to the accumulator's type."""


def write_as_gpu(float16: Path, path: Path) -> None:
    """Write a model in fp32 arithmetic that rounds each fp16 node's output to fp16, as `path` and `path`.data.

    Attention's product of softmax and values is rounded after every 16 tokens, because TensorRT's fused kernel
    accumulates it in fp16. For checks without a GPU: onnxruntime's CPU computes between the Casts in fp32 and is nearer
    to fp32 than a GPU is.
    Run it without graph optimisation, which may remove the rounding again.
    """
    model = onnx.load(float16)
    types = element_types(model)
    products = _attention_products(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.output[0] in products:
            nodes += _rounded_sum(node, products[node.output[0]])
            continue
        nodes.append(node)
        if node.op_type == "Cast" and types[node.output[0]] == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        for position, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                node.output[position] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.float16"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}.float16"], [name], to=TensorProto.FLOAT))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if products:
        model.graph.initializer.extend(_bounds(max(products.values())))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def _attention_products(model: onnx.ModelProto) -> dict[str, int]:
    """The outputs of fp16 products softmax @ values, each with its number of tokens."""
    types, shapes = element_types(model), dimensions(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    products = {}
    for node in model.graph.node:
        cast = made_by.get(node.input[0]) if node.op_type == "MatMul" else None
        softmax = made_by.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        tokens = shapes.get(node.input[0], [0])[-1]
        is_float16 = types.get(node.output[0]) == TensorProto.FLOAT16
        if softmax is not None and softmax.op_type == "Softmax" and is_float16 and tokens:
            products[node.output[0]] = tokens
    return products


def _rounded_sum(product: onnx.NodeProto, tokens: int) -> list[onnx.NodeProto]:
    """Nodes that compute a product over so many tokens, 16 at a time, each sum rounded to fp16."""
    (left, right), (output,) = product.input, product.output
    nodes, total = [], ""
    for start in range(0, tokens, ACCUMULATED):
        name = f"{output}.from{start}"
        bounds = [f"as_gpu.{start}", f"as_gpu.{start + ACCUMULATED}"]
        nodes.append(helper.make_node("Slice", [left, *bounds, "as_gpu.last_axis"], [f"{name}.left"]))
        nodes.append(helper.make_node("Slice", [right, *bounds, "as_gpu.axis_before"], [f"{name}.right"]))
        nodes.append(helper.make_node("MatMul", [f"{name}.left", f"{name}.right"], [f"{name}.product"]))
        exact = f"{name}.product"
        if total:
            exact = f"{name}.sum"
            nodes.append(helper.make_node("Add", [total, f"{name}.product"], [exact]))
        total = output if start + ACCUMULATED >= tokens else f"{name}.total"
        nodes.append(helper.make_node("Cast", [exact], [f"{name}.float16"], to=TensorProto.FLOAT16))
        nodes.append(helper.make_node("Cast", [f"{name}.float16"], [total], to=TensorProto.FLOAT))
    return nodes


def _bounds(tokens: int) -> list[onnx.TensorProto]:
    """The constants of `_rounded_sum`."""
    values = {f"as_gpu.{start}": start for start in range(0, tokens + ACCUMULATED, ACCUMULATED)}
    values |= {"as_gpu.last_axis": -1, "as_gpu.axis_before": -2}
    return [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in values.items()]


class _Float16Rewriter:
    """The nodes and new constants of the fp16 graph, with at most one Cast or one fp16 copy of a tensor."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.graph = model.graph
        self.folder = folder
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.computed: dict[str, int] = {}  # float tensor → the type it now has
        self.copies: dict[tuple[str, int], str] = {}

    def float32_nodes(self) -> list[bool]:
        """A flag for each node that stays fp32: by its kind, before the first matrix product, or feeding only such."""
        graph = self.graph
        late = downstream_of(graph, MATRIX_OPS)
        stays = [node.op_type not in FLOAT16_OPS or not late[index] for index, node in enumerate(graph.node)]
        float16_readers: set[str] = set()
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            is_matrix = node.op_type in MATRIX_OPS
            feeds_float16 = not float16_readers.isdisjoint(node.output)
            stays[index] = not is_matrix and (stays[index] or not feeds_float16 or not self._fits(node))
            if not stays[index]:
                float16_readers.update(node.input)
        halves = {name for node, stay in zip(graph.node, stays, strict=True) if not stay for name in node.output}
        for index, node in enumerate(graph.node):
            if node.op_type in _MOVES and halves.isdisjoint(node.input):
                stays[index] = True
                halves.difference_update(node.output)
        return stays

    def add(self, node: onnx.NodeProto, kind: int) -> None:
        """Append the node, with its float inputs and outputs of this element type."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if node.op_type not in {"Shape", "Size"}:  # they take any type
            new.input[:] = [self._as(name, kind) if name in self.floats else name for name in node.input]
        self.nodes.append(new)
        outputs = {output.name for output in self.graph.output}
        for position, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self.computed[name] = kind
            if name in outputs and kind == TensorProto.FLOAT16:
                new.output[position] = f"{name}_float16"
                self._cast(new.output[position], name, TensorProto.FLOAT)

    def _as(self, name: str, kind: int) -> str:
        """Name of the tensor in this element type."""
        if self.computed.get(name, TensorProto.FLOAT) == kind:
            return name
        if (name, kind) not in self.copies:
            self.copies[name, kind] = f"{name}_float{16 if kind == TensorProto.FLOAT16 else 32}"
            if name in self.weights:
                array = numpy_helper.to_array(self.weights[name], str(self.folder))
                self.constants[self.copies[name, kind]] = float16_array(name, array)
            else:
                self._cast(name, self.copies[name, kind], kind)
        return self.copies[name, kind]

    def _cast(self, name: str, output: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [output], name=f"cast_{output}", to=kind))

    def _fits(self, node: onnx.NodeProto) -> bool:
        """True if the node's float constants survive fp16."""
        try:
            for name in self.floats.intersection(node.input) & self.weights.keys():
                float16_array(name, numpy_helper.to_array(self.weights[name], str(self.folder)))
        except PrecisionError:
            return False
        return True


def float16_array(name: str, array: np.ndarray) -> np.ndarray:
    """The array as float16; infinities, as in a mask, stay infinities.

    Raises:
        PrecisionError: a finite value overflows, a value is NaN, or the values are so small that rounding them
            loses more than MAX_ROUNDING.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(np.float16)
    finite = np.isfinite(array)
    if np.isnan(array).any():
        raise PrecisionError(f"{name} holds NaN; the weights are damaged, fetch or export them again")
    if (overflow := finite & ~np.isfinite(rounded)).any():
        raise PrecisionError(
            f"{name} holds {array[overflow][0]:g}, beyond fp16's largest value 65504; build this encoder in fp32"
        )
    values = array[finite]
    loss, length = np.linalg.norm(values - rounded[finite].astype(np.float32)), np.linalg.norm(values)
    if loss > MAX_ROUNDING * length:
        raise PrecisionError(
            f"{name} loses {loss / length:.2g} of itself in fp16 (limit {MAX_ROUNDING:g}): its largest value is "
            f"{np.abs(values).max():g}, and fp16 is exact to 0.05 % only above 6e-05; build this encoder in fp32"
        )
    return rounded
