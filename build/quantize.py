"""Converts an fp32 encoder's matrix products to int8, for CPUs with onnxruntime.

Weights are int8 with a scale for each column. Activations are uint8 with a scale for each row (a token of an image),
computed as the model runs: values beyond those of the calibration images are not clipped, and an embedding does not
depend on the batch that its image is in, as it does with onnxruntime's dynamic quantization, whose one scale spans
the batch.

The file is the same function on every CPU. Where x86 has no VNNI, onnxruntime multiplies with VPMADDUBSW, which adds
two neighbouring products (rows 2k and 2k + 1 of the weights) in 16 bits and saturates. So a column's scale comes from
its largest such pair: no two neighbours add up to more than 128 levels, and with activations of at most 255 the sum
stays below 2¹⁵. A pair is rarely twice its larger half; 7 bits, the usual remedy, would halve every column's levels.
uint8 weights do not saturate either, but onnxruntime then leaves VNNI and AMX unused, which are two to nine times as
fast.

Trained vision transformers have a few channels far larger than the others, which would leave the others few of the
256 levels. So before quantizing, channel j is divided by s_j and row j of the weights multiplied by it (SmoothQuant
with α = ½). s_j comes from the calibration images; a power of two, it is exact, and the same whatever the number of
threads. Where the products read a LayerNormalization it goes into that node's scale and bias.

The output of a GELU or a ReLU is hardly ever below zero. A range symmetric about zero would leave it half of the
levels, which was the largest loss of a trained encoder; so its range begins at each row's smallest value.

These stay fp32: convolutions; the products of attention (two activations) and the projection that reads them, a
twelfth of the work, where a trained encoder lost most on its worst picture (no norm levels the output of attention);
and the last projection, of one token for each image.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from build.errors import PrecisionError
from build.onnx_model import MATRIX_OPS, MAX_FILE_BYTES, read_model, with_nodes, write_model

_BATCH = 8
_ZERO_POINT = 128  # uint8 values 1 to 255 stand for -127 to 127; onnxruntime's uint8 × int8 product is the fast one
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_ONE_SIDED = 0.75
"""The largest ratio of a range to the symmetric one around it that is used as it is; after a GELU it is 0.5."""

MAX_LEVEL = 127
"""The largest int8 weight."""
MAX_PAIR = 128
"""The largest sum of rows 2k and 2k + 1 of a column, on either side of zero: 255 × 128 < 2¹⁵."""


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
        """Values that the product takes: K."""
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
    ranges = _activation_ranges(model, source.parent, products, calibration)
    rewriter = _Int8Rewriter(model, source.parent, products, ranges)
    for node in fused_gelus(list(model.graph.node), rewriter.weights):
        rewriter.add(node)
    quantized = with_nodes(model, rewriter.nodes, rewriter.constants)
    if all(opset.domain != "com.microsoft" for opset in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    write_model(quantized, source.parent, target, max_file_bytes)


def _check_calibration(model: onnx.ModelProto, calibration: np.ndarray) -> None:
    dims = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    if calibration.dtype != np.uint8 or calibration.shape[1:] != dims or not len(calibration):
        raise PrecisionError(
            f"calibration images are {calibration.shape} {calibration.dtype}, must be (N, "
            f"{', '.join(map(str, dims))}) uint8 with N of at least 1"
        )


def _products(model: onnx.ModelProto, folder: Path) -> list[_Product]:
    """The products to quantize: with constant weights, followed by another, and not of attention's output."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    attended = _attended(model)
    products = []
    leads_on: set[str] = set()  # tensors that a later matrix product computes from
    for node in reversed(model.graph.node):
        follows = not leads_on.isdisjoint(node.output)
        is_matrix = node.op_type in MATRIX_OPS
        if is_matrix or follows:
            leads_on.update(node.input)
        product = _product(node, weights, folder) if is_matrix and follows else None
        if product is not None and product.activation not in attended:
            products.append(product)
    return products[::-1]


def _attended(model: onnx.ModelProto) -> set[str]:
    """Names of tensors that are the product of two activations, in whatever shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names: set[str] = set()
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" and constants.isdisjoint(node.input)
        if is_product or (node.op_type in _MOVES and node.input[0] in names):
            names.update(node.output)
    return names


def _product(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], folder: Path) -> _Product | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = weights.get(node.input[1])
    if node.op_type not in {"MatMul", "Gemm"} or weight is None or len(weight.dims) != 2 or node.input[0] in weights:
        return None
    if attributes.get("transA", 0) or any(attributes.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
        return None
    return _Product(node, weight, bool(attributes.get("transB", 0)), folder)


@dataclass(frozen=True)
class _Range:
    """Lowest and highest value of each channel of an activation, (K,) each."""

    lowest: np.ndarray
    highest: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """Largest absolute value of each channel, (K,)."""
        return np.maximum(-self.lowest, self.highest)

    def united(self, other: _Range) -> _Range:
        return _Range(np.minimum(self.lowest, other.lowest), np.maximum(self.highest, other.highest))


def _activation_ranges(
    model: onnx.ModelProto, folder: Path, products: list[_Product], calibration: np.ndarray
) -> dict[str, _Range]:
    """The range of each product's input over the calibration images, by its name."""
    names = list(dict.fromkeys(product.activation for product in products))
    session = _watching_session(model, folder, {product.activation: product.width for product in products})
    outputs = [f"{name}_{end}" for name in names for end in ("lowest", "highest")]
    feed = session.get_inputs()[0].name
    ranges: dict[str, _Range] = {}
    for start in range(0, len(calibration), _BATCH):
        values = [np.asarray(array) for array in session.run(outputs, {feed: calibration[start : start + _BATCH]})]
        for name, lowest, highest in zip(names, values[::2], values[1::2], strict=True):
            channels = _Range(lowest, highest)
            ranges[name] = ranges[name].united(channels) if name in ranges else channels
    for name, channels in ranges.items():
        if not np.isfinite(channels.largest).all():
            raise PrecisionError(f"{name} is not finite for a calibration image; check the fp32 encoder")
    return ranges


def _watching_session(model: onnx.ModelProto, folder: Path, widths: dict[str, int]) -> onnxruntime.InferenceSession:
    """The model with two outputs for each of these tensors: the lowest and the highest value of its channels."""
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    graph = watching.graph
    del graph.output[:]
    opset = opset_of(model)
    for name, width in widths.items():
        rows = f"{name}_rows"
        shape = numpy_helper.from_array(np.array([-1, width]), f"{name}_shape")
        axes = numpy_helper.from_array(np.array([0]), f"{name}_axes")
        graph.initializer.extend([shape, axes])
        graph.node.append(helper.make_node("Reshape", [name, shape.name], [rows]))
        for kind, end in (("ReduceMin", "lowest"), ("ReduceMax", "highest")):
            graph.node.append(reduction(kind, rows, f"{name}_{end}", 0, axes.name, opset, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}_{end}", TensorProto.FLOAT, [width]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return onnxruntime.InferenceSession(watching.SerializeToString(), options, providers=["CPUExecutionProvider"])


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default domain's operators."""
    return next(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"})


def reduction(kind: str, name: str, output: str, axis: int, axes: str, opset: int, keepdims: int) -> onnx.NodeProto:
    """A ReduceMax or ReduceMin node; its axis is an input (`axes`, a tensor of it) from opset 18 on."""
    if opset >= 18:
        return helper.make_node(kind, [name, axes], [output], name=output, keepdims=keepdims)
    return helper.make_node(kind, [name], [output], name=output, axes=[axis], keepdims=keepdims)


def smoothing(activation: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Powers of two, (K,), that divide channels and multiply weights so that both have equal ranges.

    Args:
        activation: (K,) largest absolute values of the channels.
        weight: (K,) largest absolute values of the weights' rows.
    """
    ratio = _raised(activation) / _raised(weight)
    exponent = np.log2(ratio) / 2
    return np.exp2(np.round(exponent - exponent.mean())).astype(np.float32)


def _raised(largest: np.ndarray) -> np.ndarray:
    """Raise values to a tenth of their median: a channel that was silent in these images may be loud in others."""
    floor = max(float(np.median(largest)) / 10, 1e-10)
    return np.maximum(largest.astype(np.float64), floor)


def quantize_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize (K, N) float32 to int8 in -127 to 127 whose neighbours add up to at most 128, and (N,) float32 scales.

    Raises:
        PrecisionError: a value is not finite.
    """
    # Rounding adds up to half a level to each half of a pair.
    scales = np.maximum(np.abs(matrix).max(axis=0) / MAX_LEVEL, largest_pairs(matrix) / (MAX_PAIR - 1))
    if not np.isfinite(scales).all():
        raise PrecisionError("a weight is not finite; the weights are damaged, fetch or export them again")
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.round(matrix / scales).astype(np.int8), scales


def largest_pairs(matrix: np.ndarray) -> np.ndarray:
    """The largest sum of rows 2k and 2k + 1 on one side of zero (activations are not negative): (K, N) → (N,)."""
    pairs = np.pad(matrix, ((0, len(matrix) % 2), (0, 0))).reshape(-1, 2, matrix.shape[1])
    upward = np.maximum(pairs, 0).sum(axis=1, dtype=np.float64)
    downward = -np.minimum(pairs, 0).sum(axis=1, dtype=np.float64)
    return np.maximum(upward, downward).max(axis=0)


def saturating_products(path: Path) -> list[str]:
    """Names of an int8 file's products, from older builds, that compute something else on an x86 CPU without VNNI."""
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMulIntegerToFloat"
        and node.input[1] in weights
        and largest_pairs(numpy_helper.to_array(weights[node.input[1]])).max() > MAX_PAIR
    ]


def fused_gelus(nodes: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Replace x · (½ · (1 + erf(x / √2))), five passes over a wide tensor, with onnxruntime's one Gelu.

    torch exports it in this order, which onnxruntime itself does not recognise.
    """
    makers = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    replaced: dict[str, onnx.NodeProto] = {}
    dropped: set[str] = set()
    for erf in (node for node in nodes if node.op_type == "Erf"):
        chain = [makers.get(erf.input[0]), erf, *_readers_after(erf, nodes, 3)]
        kinds = [node.op_type if node is not None else "" for node in chain]
        division, _, *rest = chain
        if kinds != ["Div", "Erf", "Add", "Mul", "Mul"] or division is None:
            continue
        constants = [_scalar(node, weights) for node in (division, *rest[:2])]
        is_gelu = np.allclose([value or np.nan for value in constants], [math.sqrt(2), 1, 0.5], rtol=1e-6)
        inner = [node.output[0] for node in chain[:-1] if node is not None]
        if is_gelu and division.input[0] in rest[-1].input and all(readers[name] == 1 for name in inner):
            name = rest[-1].output[0]
            replaced[name] = helper.make_node("Gelu", [division.input[0]], [name], name=name, domain="com.microsoft")
            dropped.update(inner)
    return [replaced.get(node.output[0], node) for node in nodes if node.output[0] not in dropped]


def _readers_after(node: onnx.NodeProto, nodes: list[onnx.NodeProto], count: int) -> list[onnx.NodeProto]:
    """The next nodes of a chain, each the first reader of the output before it."""
    chain: list[onnx.NodeProto] = []
    for _ in range(count):
        node = next((other for other in nodes if node.output[0] in other.input), node)
        chain.append(node)
    return chain


def _scalar(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> float | None:
    """The number among a node's inputs: a constant without dimensions."""
    tensors = [weights[name] for name in node.input if name in weights and not weights[name].dims]
    return float(numpy_helper.to_array(tensors[0])) if tensors else None


def _is_one_sided(channels: _Range, scale: np.ndarray) -> bool:
    """True if the activation, its channels divided by `scale`, lies nearly all on one side of zero."""
    lowest, highest = float((channels.lowest / scale).min()), float((channels.highest / scale).max())
    return highest - lowest < _ONE_SIDED * 2 * max(-lowest, highest)


class _Int8Rewriter:
    """The nodes and new constants of the int8 graph."""

    def __init__(
        self, model: onnx.ModelProto, folder: Path, products: list[_Product], ranges: dict[str, _Range]
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
            "int8_all_levels": np.array(1 / 255, np.float32),
            "int8_smallest": np.array(1e-20, np.float32),
            "int8_one": np.array(1, np.float32),
            "int8_zero_point": np.array(_ZERO_POINT, np.uint8),
            "int8_no_zero_point": np.array(0, np.uint8),
        }
        self.rows: dict[str, tuple[str, str]] = {}  # activation → names of its uint8 form and of its rows' scales
        self.scales = self._smoothing(products, ranges)
        self.one_sided = {name for name, scale in self.scales.items() if _is_one_sided(ranges[name], scale)}
        self.folded = {norm.output[0]: s for name, s in self.scales.items() if (norm := self._norm(name)) is not None}
        self.in_norm = {name for name in self.scales if self._norm(name) is not None}

    def add(self, node: onnx.NodeProto) -> None:
        """Append the node, or its replacement."""
        product = self.products.get(node.output[0])
        if product is not None:
            self._multiply(product, *self._quantized(product.activation))
        elif node.output[0] in self.folded:
            self._fold(node, self.folded[node.output[0]])
        else:
            self.nodes.append(node)

    def _smoothing(self, products: list[_Product], ranges: dict[str, _Range]) -> dict[str, np.ndarray]:
        """Factors (K,) of each activation, by its name, fit for all products that read it."""
        rows: dict[str, list[np.ndarray]] = defaultdict(list)
        for product in products:
            rows[product.activation].append(np.abs(product.matrix()).max(axis=1))
        return {name: smoothing(ranges[name].largest, np.max(weights, axis=0)) for name, weights in rows.items()}

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
        """True if the node leaves the last axis, of this width, as it is."""
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
        """Names of the activation as uint8, and of its rows' scales; made once."""
        if name not in self.rows:
            self.rows[name] = f"{name}_uint8", f"{name}_scale"
            smooth = name
            if name not in self.in_norm:
                smooth, self.constants[f"{name}_factor"] = f"{name}_smooth", 1 / self.scales[name]
                self._node("Mul", [name, f"{name}_factor"], smooth)
            for kind in ("ReduceMax", "ReduceMin"):
                output = f"{name}_{kind}"
                self.nodes.append(reduction(kind, smooth, output, -1, "int8_last_axis", self.opset, keepdims=1))
            if name in self.one_sided:
                self._node("Sub", [f"{name}_ReduceMax", f"{name}_ReduceMin"], f"{name}_span")
                self._node("Max", [f"{name}_span", "int8_smallest"], f"{name}_largest")
                self._node("Sub", [smooth, f"{name}_ReduceMin"], f"{name}_above_lowest")
                self._levels(name, f"{name}_above_lowest", "int8_all_levels")
            else:
                self._node("Neg", [f"{name}_ReduceMin"], f"{name}_negative")
                self._node("Max", [f"{name}_ReduceMax", f"{name}_negative", "int8_smallest"], f"{name}_largest")
                self._levels(name, smooth, "int8_levels")
        return self.rows[name]

    def _levels(self, name: str, values: str, levels: str) -> None:
        """Append the nodes that make uint8 of an activation's values, by the largest value of each row."""
        self._node("Mul", [f"{name}_largest", levels], f"{name}_scale")
        self._node("Div", [values, f"{name}_scale"], f"{name}_levels")
        self._node("QuantizeLinear", [f"{name}_levels", "int8_one", self._zero_point(name)], f"{name}_uint8")

    def _zero_point(self, name: str) -> str:
        return "int8_no_zero_point" if name in self.one_sided else "int8_zero_point"

    def _multiply(self, product: _Product, rows: str, scale: str) -> None:
        """Append the integer product times the rows' scales, the term of their smallest values, and the bias."""
        output, activation = product.node.output[0], product.activation
        name = f"{output}_weight"
        matrix = product.matrix() * self.scales[activation][:, None]
        self.constants[name], self.constants[f"{name}_scale"] = quantize_columns(matrix)
        inputs = [rows, name, "int8_one", f"{name}_scale", self._zero_point(activation)]
        self._node("MatMulIntegerToFloat", inputs, f"{output}_unscaled", domain="com.microsoft")
        terms = []
        if activation in self.one_sided:
            sums = self.constants[name].sum(axis=0, dtype=np.int32) * self.constants[f"{name}_scale"]
            self.constants[f"{name}_sums"] = sums.astype(np.float32)
            self._node("Mul", [f"{activation}_ReduceMin", f"{name}_sums"], f"{output}_lowest")
            terms.append(f"{output}_lowest")
        if product.bias is not None:
            terms.append(product.bias)
        self._node("Mul", [f"{output}_unscaled", scale], f"{output}_scaled" if terms else output)
        total = f"{output}_scaled"
        for number, term in enumerate(terms, 1):
            following = output if number == len(terms) else f"{output}_sum_{number}"
            self._node("Add", [total, term], following)
            total = following

    def _node(self, kind: str, inputs: list[str], output: str, domain: str = "") -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain))
