"""fp32 encoder ONNX → the same function with its matrix products in int8, for CPUs (onnxruntime).

Weights are int8 with a scale a column. Activations are uint8 with a scale a row (a token of an image), found as it
runs: nothing is clipped that the calibration images did not show, and an embedding does not depend on the batch
that its image is in, as it does with onnxruntime's dynamic quantization, whose one scale spans the batch.

Trained vision transformers have a few channels far larger than the others, which would leave the others few of the
256 levels. So before quantizing, channel j is divided by s_j and row j of the weights multiplied by it (SmoothQuant
with α = ½). s_j comes from the calibration images; a power of two, it is exact, and the same whatever the number of
threads. Where the products read a LayerNormalization it goes into that node's scale and bias.

fp32 stay convolutions, the products of attention (two activations) and the last projection, of one token an image.
Weights use all 8 bits: on a CPU without VNNI onnxruntime's 16-bit sums can saturate, so compare embeddings there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from build.errors import PrecisionError
from build.precision import MATRIX_OPS, MAX_FILE_BYTES, read_model, with_nodes, write_model

_BATCH = 8
_ZERO_POINT = 128  # uint8 values 1 to 255 stand for -127 to 127; onnxruntime's uint8 × int8 product is the fast one


@dataclass(frozen=True)
class _Product:
    """A MatMul or Gemm with constant weights, (K, N) float32 once read."""

    node: onnx.NodeProto
    weight: onnx.TensorProto
    transposed: bool
    folder: Path

    @property
    def activation(self) -> str:
        return self.node.input[0]

    @property
    def bias(self) -> str | None:
        return self.node.input[2] if len(self.node.input) == 3 else None

    @property
    def width(self) -> int:
        """K."""
        return self.weight.dims[1 if self.transposed else 0]

    def matrix(self) -> np.ndarray:
        array = numpy_helper.to_array(self.weight, str(self.folder))
        return array.T if self.transposed else array


def to_int8(source: Path, target: Path, calibration: np.ndarray, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the int8 form of an fp32 encoder.

    Args:
        source: .onnx file; its weights may lie in external data beside it.
        target: .onnx file. Weights above `max_file_bytes` go into `<target name>.data`.
        calibration: (N, H, W, 3) uint8, ordinary images; a dozen will do.

    Raises:
        PrecisionError: `calibration` is not what `source` takes, there is nothing to quantize, or weights or
            activations are not finite. Nothing is written then.
    """
    model = read_model(source)
    _check_calibration(model, calibration)
    products = _products(model, source.parent)
    if not products:
        raise PrecisionError(f"{source}: no matrix product with constant weights to quantize; build it in fp32")
    largest = _largest_activations(model, source.parent, products, calibration)
    rewriter = _Int8Rewriter(model, source.parent, products, largest)
    for node in model.graph.node:
        rewriter.add(node)
    quantized = with_nodes(model, rewriter.nodes, rewriter.constants)
    if all(opset.domain != "com.microsoft" for opset in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    write_model(quantized, source.parent, target, max_file_bytes)


def _check_calibration(model: onnx.ModelProto, calibration: np.ndarray) -> None:
    wanted = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    if calibration.dtype != np.uint8 or calibration.shape[1:] != wanted or not len(calibration):
        raise PrecisionError(
            f"calibration images are {calibration.shape} {calibration.dtype}, must be (N, "
            f"{', '.join(map(str, wanted))}) uint8 with N of at least 1"
        )


def _products(model: onnx.ModelProto, folder: Path) -> list[_Product]:
    """What is quantized: products with constant weights that another matrix product follows."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    found = []
    leads_on: set[str] = set()  # tensors that a later matrix product computes from
    for node in reversed(model.graph.node):
        follows = not leads_on.isdisjoint(node.output)
        is_matrix = node.op_type in MATRIX_OPS
        if is_matrix or follows:
            leads_on.update(node.input)
        if is_matrix and follows and (product := _product(node, weights, folder)) is not None:
            found.append(product)
    return found[::-1]


def _product(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], folder: Path) -> _Product | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = weights.get(node.input[1])
    if node.op_type not in {"MatMul", "Gemm"} or weight is None or len(weight.dims) != 2 or node.input[0] in weights:
        return None
    if attributes.get("transA", 0) or any(attributes.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
        return None
    return _Product(node, weight, bool(attributes.get("transB", 0)), folder)


def _largest_activations(
    model: onnx.ModelProto, folder: Path, products: list[_Product], calibration: np.ndarray
) -> dict[str, np.ndarray]:
    """Name of each product's input → (K,) largest absolute value of each channel over the calibration images."""
    session = _watching_session(model, folder, {product.activation: product.width for product in products})
    names = [output.name for output in session.get_outputs()]
    feed = session.get_inputs()[0].name
    largest: dict[str, np.ndarray] = {}
    for start in range(0, len(calibration), _BATCH):
        found = session.run(names, {feed: calibration[start : start + _BATCH]})
        for name, values in zip(names, found, strict=True):
            largest[name] = np.maximum(largest.get(name, 0), np.asarray(values))
    largest = {name.removesuffix("_largest"): values for name, values in largest.items()}
    for name, values in largest.items():
        if not np.isfinite(values).all():
            raise PrecisionError(f"{name} is not finite for a calibration image; check the fp32 encoder")
    return largest


def _watching_session(model: onnx.ModelProto, folder: Path, widths: dict[str, int]) -> onnxruntime.InferenceSession:
    """The model with one output for each of these tensors: the largest absolute value of its channels."""
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    graph = watching.graph
    del graph.output[:]
    opset = opset_of(model)
    for name, width in widths.items():
        rows, absolute, largest = f"{name}_rows", f"{name}_absolute", f"{name}_largest"
        shape = numpy_helper.from_array(np.array([-1, width]), f"{name}_shape")
        axes = numpy_helper.from_array(np.array([0]), f"{name}_axes")
        graph.initializer.extend([shape, axes])
        graph.node.append(helper.make_node("Reshape", [name, shape.name], [rows]))
        graph.node.append(helper.make_node("Abs", [rows], [absolute]))
        graph.node.append(reduction("ReduceMax", absolute, largest, 0, axes.name, opset, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, [width]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return onnxruntime.InferenceSession(watching.SerializeToString(), options, providers=["CPUExecutionProvider"])


def opset_of(model: onnx.ModelProto) -> int:
    """Of the default domain."""
    return next(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"})


def reduction(kind: str, name: str, output: str, axis: int, axes: str, opset: int, keepdims: int) -> onnx.NodeProto:
    """A ReduceMax or ReduceMin node; its axis is an input (`axes`, a tensor of it) from opset 18 on."""
    if opset >= 18:
        return helper.make_node(kind, [name, axes], [output], name=output, keepdims=keepdims)
    return helper.make_node(kind, [name], [output], name=output, axes=[axis], keepdims=keepdims)


def smoothing(activation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(K,) powers of two that bring channels and weights to equal ranges when they divide one and multiply the other.

    Args:
        activation: (K,) largest absolute values of the channels.
        weight: (K,) of the weights' rows.
    """
    ratio = _raised(activation) / _raised(weight)
    exponent = np.log2(ratio) / 2
    return np.exp2(np.round(exponent - exponent.mean())).astype(np.float32)


def _raised(largest: np.ndarray) -> np.ndarray:
    """At least a tenth of the median: a channel that these images left silent may speak for another."""
    floor = max(float(np.median(largest)) / 10, 1e-10)
    return np.maximum(largest.astype(np.float64), floor)


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, N) float32 → (K, N) int8 in -127 to 127, and (N,) float32 scales.

    Raises:
        PrecisionError: a value is not finite.
    """
    scales = np.abs(matrix).max(axis=0) / np.float32(127)
    if not np.isfinite(scales).all():
        raise PrecisionError("a weight is not finite; the weights are damaged, fetch or export them again")
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    return np.round(matrix / scales).astype(np.int8), scales


class _Int8Rewriter:
    """The nodes and new constants of the int8 graph."""

    def __init__(
        self, model: onnx.ModelProto, folder: Path, products: list[_Product], largest: dict[str, np.ndarray]
    ) -> None:
        self.folder = folder
        self.opset = opset_of(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.readers.update(output.name for output in model.graph.output)
        self.products = {product.node.output[0]: product for product in products}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {
            "int8_last_axis": np.array([-1]),
            "int8_levels": np.array(1 / 127, np.float32),
            "int8_smallest": np.array(1e-20, np.float32),
            "int8_one": np.array(1, np.float32),
            "int8_zero_point": np.array(_ZERO_POINT, np.uint8),
        }
        self.rows: dict[str, tuple[str, str]] = {}  # activation → its uint8 form, its rows' scales
        self.scales = self._smoothing(products, largest)
        self.folded = {norm.output[0]: s for name, s in self.scales.items() if (norm := self._norm(name)) is not None}
        self.in_norm = {name for name in self.scales if self._norm(name) is not None}

    def add(self, node: onnx.NodeProto) -> None:
        """Append the node, or what takes its place."""
        product = self.products.get(node.output[0])
        if product is not None:
            self._multiply(product, *self._quantized(product.activation))
        elif node.output[0] in self.folded:
            self._fold(node, self.folded[node.output[0]])
        else:
            self.nodes.append(node)

    def _smoothing(self, products: list[_Product], largest: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Name of each activation → (K,), fit for all products that read it."""
        rows: dict[str, list[np.ndarray]] = defaultdict(list)
        for product in products:
            rows[product.activation].append(np.abs(product.matrix()).max(axis=1))
        return {name: smoothing(largest[name], np.max(found, axis=0)) for name, found in rows.items()}

    def _norm(self, name: str) -> onnx.NodeProto | None:
        """The LayerNormalization that makes this activation, when nothing but its products reads it."""
        width = len(self.scales[name])
        readers = sum(product.activation == name for product in self.products.values())
        while (node := self.makers.get(name)) is not None and self.readers[name] == readers:
            if node.op_type == "LayerNormalization":
                return node if list(self.weights[node.input[1]].dims) == [width] else None
            if not self._moves_rows(node, width):
                return None
            name, readers = node.input[0], 1
        return None

    def _moves_rows(self, node: onnx.NodeProto, width: int) -> bool:
        """Whether the node leaves the last axis, of this width, as it is."""
        if node.op_type == "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [0])
            return order[-1] == len(order) - 1 > 0
        if node.op_type == "Reshape" and node.input[1] in self.weights:
            return int(numpy_helper.to_array(self.weights[node.input[1]], str(self.folder))[-1]) == width
        return False

    def _fold(self, node: onnx.NodeProto, scale: np.ndarray) -> None:
        """Append a LayerNormalization that puts out its channels divided by `scale`."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for position in range(1, len(node.input)):
            array = numpy_helper.to_array(self.weights[node.input[position]], str(self.folder))
            new.input[position] = f"{node.output[0]}_smooth_{position}"
            self.constants[new.input[position]] = array / scale
        self.nodes.append(new)

    def _quantized(self, name: str) -> tuple[str, str]:
        """Names of the activation as uint8 with zero point 128, and of its rows' scales; made once."""
        if name not in self.rows:
            self.rows[name] = f"{name}_uint8", f"{name}_scale"
            smooth = name
            if name not in self.in_norm:
                smooth, self.constants[f"{name}_factor"] = f"{name}_smooth", 1 / self.scales[name]
                self._node("Mul", [name, f"{name}_factor"], smooth)
            for kind in ("ReduceMax", "ReduceMin"):
                output = f"{name}_{kind}"
                self.nodes.append(reduction(kind, smooth, output, -1, "int8_last_axis", self.opset, keepdims=1))
            self._node("Neg", [f"{name}_ReduceMin"], f"{name}_negative")
            self._node("Max", [f"{name}_ReduceMax", f"{name}_negative", "int8_smallest"], f"{name}_largest")
            self._node("Mul", [f"{name}_largest", "int8_levels"], f"{name}_scale")
            self._node("Div", [smooth, f"{name}_scale"], f"{name}_levels")
            self._node("QuantizeLinear", [f"{name}_levels", "int8_one", "int8_zero_point"], f"{name}_uint8")
        return self.rows[name]

    def _multiply(self, product: _Product, rows: str, scale: str) -> None:
        """Append the integer product, times the rows' scales, plus the bias."""
        output = product.node.output[0]
        name = f"{output}_weight"
        matrix = product.matrix() * self.scales[product.activation][:, None]
        self.constants[name], self.constants[f"{name}_scale"] = quantize_columns(matrix)
        inputs = [rows, name, "int8_one", f"{name}_scale", "int8_zero_point"]
        self._node("MatMulIntegerToFloat", inputs, f"{output}_unscaled", domain="com.microsoft")
        scaled = output if product.bias is None else f"{output}_scaled"
        self._node("Mul", [f"{output}_unscaled", scale], scaled)
        if product.bias is not None:
            self._node("Add", [scaled, product.bias], output)

    def _node(self, kind: str, inputs: list[str], output: str, domain: str = "") -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain))
