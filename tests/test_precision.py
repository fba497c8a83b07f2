"""The fp16 and int8 forms of an encoder's ONNX file, on a small vision transformer and a few nodes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pictures import noise

import build.float16 as float16_module
from build.cosine import cosines
from build.errors import PrecisionError
from build.export import EncoderGraph, export_onnx
from build.float16 import float16_array, to_float16, write_as_gpu
from build.onnx_model import MATRIX_OPS, downstream_of, element_types, read_model
from build.quantize import quantize_columns, smoothing, to_int8
from build.tensorrt_plan import PlanSpec, check_uint8_input
from build.tower import load_tower
from common.manifest import BatchProfile, Tensor
from recipes.build_section import MAX_IR_VERSION
from recipes.schema import parse_recipe

IMAGE_SIZE = 32
EMBED_DIM = 32
WIDTH = 64

PIXELS = np.stack([np.asarray(noise(IMAGE_SIZE, IMAGE_SIZE, seed=seed)) for seed in range(12)])
"""(12, H, W, 3) uint8; the first four are for calibration."""


def tiny_tower(quick_gelu: bool = True):
    vision = {"image_size": IMAGE_SIZE, "layers": 3, "width": WIDTH, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    config = {"embed_dim": EMBED_DIM, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    encoder = {"model": "tiny", "seed": 3, "open_clip_config": config}
    recipe = parse_recipe({"name": "t", "description": "t", "encoder": encoder, "heads": [HEAD]})
    return recipe, load_tower(recipe.encoder)


HEAD = {"name": "head", "class_names": ["no", "yes"]}


@torch.no_grad()
def with_outliers(visual, factor: float):
    """Some channels `factor` times larger and their weights smaller, as trained transformers have them."""
    for block in visual.transformer.resblocks:
        for norm, weight in ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight)):
            norm.weight[[5, 40]] *= factor
            norm.bias[[5, 40]] *= factor
            weight[:, [5, 40]] /= factor
        block.attn.in_proj_weight[2 * WIDTH + 7] *= factor
        block.attn.out_proj.weight[:, 7] /= factor


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("encoder") / "model.onnx")


@pytest.fixture(scope="module")
def outlier_encoder(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("outliers") / "model.onnx", outliers=40)


def exported(path: Path, *, outliers: float = 1, quick_gelu: bool = True) -> Path:
    recipe, tower = tiny_tower(quick_gelu)
    with_outliers(tower.visual, outliers)
    export_onnx(EncoderGraph([tower]), recipe.build.opset, path)
    return path


@pytest.fixture(scope="module")
def float16(encoder: Path) -> Path:
    to_float16(encoder, encoder.with_name("float16.onnx"))
    return encoder.with_name("float16.onnx")


@pytest.fixture(scope="module")
def int8(encoder: Path) -> Path:
    to_int8(encoder, encoder.with_name("int8.onnx"), PIXELS[:4])
    return encoder.with_name("int8.onnx")


def embed(path: Path, pixels: np.ndarray = PIXELS) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def test_attention_is_accumulated_in_float16_as_the_fused_kernel_does(float16: Path, tmp_path: Path):
    write_as_gpu(float16, tmp_path / "as_gpu.onnx")
    nodes = onnx.load(tmp_path / "as_gpu.onnx", load_external_data=False).graph.node
    blocks = sum(node.op_type == "Softmax" for node in nodes)
    slices = [node for node in nodes if node.op_type == "Slice" and "as_gpu.last_axis" in node.input]
    assert blocks
    assert len(slices) >= blocks


def test_a_sum_in_float16_is_rounded_after_every_sixteen_tokens(tmp_path: Path):
    """2048 + 1 is 2048 in fp16: sixteen at a time the small ones count, one at a time none would, at once all do."""
    tokens = 16 * 3
    product = helper.make_node("MatMul", ["left", "right"], ["sum"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        float16_module._rounded_sum(product, tokens),
        "sum",
        [value("left", TensorProto.FLOAT, [1, tokens]), value("right", TensorProto.FLOAT, [tokens, 1])],
        [value("sum", TensorProto.FLOAT, [1, 1])],
        float16_module._bounds(tokens),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    left = np.zeros((1, tokens), np.float32)
    left[0, 0], left[0, 16], left[0, 32:34] = 2048, 1, 1
    (total,) = session.run(["sum"], {"left": left, "right": np.ones((tokens, 1), np.float32)})
    assert float(np.asarray(total)[0, 0]) == 2050  # 2048 + 1 is lost, 2048 + 2 is not


def signature(path: Path) -> list[tuple[str, int, list]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    ]


def with_external_data(source: Path, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(onnx.load(source), path, save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    return path


def write_product(path: Path, weight: np.ndarray, *, factor: float | None = None, opset: int = 18) -> Path:
    """A graph: mean colour → (× factor) → MatMul → MatMul."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"], name="one"),
        helper.make_node("Mul", ["hidden", "factor"], ["scaled"], name="scale"),
        helper.make_node("MatMul", ["scaled", "second"], ["embedding"], name="two"),
    ]
    constants = {
        "first": weight,
        "factor": np.array(1 if factor is None else factor, np.float32),
        "second": np.eye(weight.shape[1], 3, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


WEIGHT = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32) / 100
SMALL_PIXELS = np.random.default_rng(1).integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)


class TestBoth:
    @pytest.mark.parametrize("form", ["float16", "int8"])
    def test_input_and_output_stay(self, form, encoder, request):
        assert signature(request.getfixturevalue(form)) == signature(encoder)

    @pytest.mark.parametrize("form", ["float16", "int8"])
    def test_an_embedding_does_not_depend_on_its_batch(self, form, request):
        path = request.getfixturevalue(form)
        alone = np.concatenate([embed(path, PIXELS[index : index + 1]) for index in range(len(PIXELS))])
        np.testing.assert_allclose(alone, embed(path), atol=1e-5)

    @pytest.mark.parametrize("form", ["float16", "int8"])
    def test_the_oldest_promised_runtime_reads_it(self, form, request):
        model = onnx.load(request.getfixturevalue(form))
        opsets = {opset.domain: opset.version for opset in model.opset_import}
        assert model.ir_version <= MAX_IR_VERSION
        assert opsets == ({"": 18} if form == "float16" else {"": 18, "com.microsoft": 1})

    @pytest.mark.parametrize("form", ["float16", "int8"])
    def test_pixels_go_into_a_cast_only(self, form, request):
        spec = PlanSpec(
            request.getfixturevalue(form),
            Tensor(name="pixels", dtype="UINT8", dims=[IMAGE_SIZE, IMAGE_SIZE, 3]),
            Tensor(name="embedding", dtype="FP32", dims=[EMBED_DIM]),
            BatchProfile(min_batch_size=1, opt_batch_size=1, max_batch_size=1),
            2**20,
        )
        check_uint8_input(spec)

    @pytest.mark.parametrize("convert", [to_float16, lambda s, t: to_int8(s, t, PIXELS[:4])])
    def test_the_same_input_gives_the_same_bytes(self, convert, encoder, tmp_path):
        convert(encoder, tmp_path / "one.onnx")
        convert(encoder, tmp_path / "two.onnx")
        assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]

    @pytest.mark.parametrize("form", ["float16", "int8"])
    def test_external_data_in_and_out(self, form, encoder, tmp_path, request):
        source, target = with_external_data(encoder, tmp_path / "in"), tmp_path / "out" / "model.onnx"
        target.parent.mkdir()
        if form == "float16":
            to_float16(source, target, max_file_bytes=10_000)
        else:
            to_int8(source, target, PIXELS[:4], max_file_bytes=10_000)
        assert sorted(path.name for path in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
        assert target.stat().st_size < 100_000
        np.testing.assert_array_equal(embed(target), embed(request.getfixturevalue(form)))

    def test_one_file_replaces_two(self, encoder, tmp_path):
        target = tmp_path / "model.onnx"
        to_float16(encoder, target, max_file_bytes=10_000)
        to_float16(encoder, target)
        assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
        assert len(embed(target)) == len(PIXELS)

    def test_a_failure_leaves_the_target_as_it_was(self, tmp_path):
        source = write_product(tmp_path / "source.onnx", np.full((12, 5), 7e4, np.float32))
        (tmp_path / "target.onnx").write_bytes(b"before")
        with pytest.raises(PrecisionError):
            to_float16(source, tmp_path / "target.onnx")
        assert (tmp_path / "target.onnx").read_bytes() == b"before"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source.onnx", "target.onnx"]

    def test_subgraphs_are_refused(self, tmp_path):
        body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [])
        node = helper.make_node("If", ["x"], ["y"], name="choose", then_branch=body, else_branch=body)
        graph = helper.make_graph([node], "nested", [], [])
        onnx.save(helper.make_model(graph), tmp_path / "nested.onnx")
        with pytest.raises(PrecisionError, match="choose"):
            read_model(tmp_path / "nested.onnx")


class TestFloat16:
    def test_sensitive_nodes_stay_fp32(self, float16):
        model = onnx.load(float16)
        types = element_types(model)
        kinds = {"LayerNormalization", "Softmax", "ReduceL2", "Clip", "Div"}
        element_types_by_kind = [
            (node.op_type, types[name]) for node in model.graph.node if node.op_type in kinds for name in node.input[:1]
        ]
        assert {kind for kind, _ in element_types_by_kind} == kinds
        assert {element for _, element in element_types_by_kind} == {TensorProto.FLOAT}

    def test_products_are_fp16(self, float16):
        model = onnx.load(float16)
        types = element_types(model)
        elements = [types[name] for node in model.graph.node if node.op_type in MATRIX_OPS for name in node.input]
        assert len(elements) > 20
        assert set(elements) == {TensorProto.FLOAT16}

    def test_the_pixels_scale_is_fp32(self, float16):
        model = onnx.load(float16)
        types = element_types(model)
        late = downstream_of(model.graph, MATRIX_OPS)
        first = [node for node, is_late in zip(model.graph.node, late, strict=True) if not is_late]
        scale = [node for node in first if node.op_type in {"Mul", "Add"}]
        assert [types[node.output[0]] for node in scale] == [TensorProto.FLOAT] * 2

    def test_the_residual_stream_is_fp32(self, float16):
        model = onnx.load(float16)
        types = element_types(model)
        makers = {name: node for node in model.graph.node for name in node.output}
        sums = [
            makers[node.input[0]]
            for node in model.graph.node
            if node.op_type == "LayerNormalization" and makers[node.input[0]].op_type == "Add"
        ]
        assert len(sums) >= 6
        assert {types[node.output[0]] for node in sums} == {TensorProto.FLOAT}

    def test_no_tensor_is_cast_twice(self, float16):
        casts = [
            (node.input[0], node.attribute[0].i) for node in onnx.load(float16).graph.node if node.op_type == "Cast"
        ]
        assert len(set(casts)) == len(casts)

    def test_the_file_halves(self, encoder, float16):
        assert float16.stat().st_size < 0.56 * encoder.stat().st_size

    def test_embeddings_agree(self, encoder, float16):
        assert cosines(embed(encoder), embed(float16)).min() > 0.99999

    def test_gelu(self, tmp_path):
        source = exported(tmp_path / "gelu.onnx", quick_gelu=False)
        to_float16(source, tmp_path / "float16.onnx")
        assert cosines(embed(source), embed(tmp_path / "float16.onnx")).min() > 0.99999

    def test_an_overflowing_weight_is_refused(self, tmp_path):
        weight = WEIGHT.copy()
        weight[3, 2] = -1e5
        with pytest.raises(PrecisionError, match=re.escape("first holds -100000, beyond")):
            to_float16(write_product(tmp_path / "a.onnx", weight), tmp_path / "b.onnx")

    def test_weights_too_small_are_refused(self, tmp_path):
        with pytest.raises(PrecisionError, match=r"first loses .* largest value is 2"):
            to_float16(write_product(tmp_path / "a.onnx", WEIGHT / np.abs(WEIGHT).max() * 2e-7), tmp_path / "b.onnx")

    def test_a_damaged_weight_is_refused(self):
        with pytest.raises(PrecisionError, match="w holds NaN"):
            float16_array("w", np.array([1, np.nan], np.float32))

    @pytest.mark.parametrize("factor", [1e5, 1e-7])
    def test_an_elementwise_constant_that_does_not_fit_stays_fp32(self, factor, tmp_path):
        source = write_product(tmp_path / "a.onnx", WEIGHT / np.float32(factor) ** np.float32(0.1), factor=factor)
        to_float16(source, tmp_path / "b.onnx")
        types = element_types(onnx.load(tmp_path / "b.onnx"))
        assert (types["hidden"], types["scaled"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)

    def test_masks_keep_their_infinities(self):
        rounded = float16_array("mask", np.array([0, -np.inf, 1], np.float32))
        assert rounded.dtype == np.float16
        assert rounded.tolist() == [0, -np.inf, 1]

    def test_a_last_product_gives_fp32(self, tmp_path):
        source = write_product(tmp_path / "a.onnx", WEIGHT)
        to_float16(source, tmp_path / "b.onnx")
        assert signature(tmp_path / "b.onnx") == signature(source)
        np.testing.assert_allclose(
            embed(tmp_path / "b.onnx", SMALL_PIXELS), embed(source, SMALL_PIXELS), rtol=5e-3, atol=5e-3
        )


class TestInt8:
    def test_embeddings_agree(self, encoder, int8):
        assert cosines(embed(encoder), embed(int8)).min() > 0.999

    def test_outlier_channels_do_no_harm(self, outlier_encoder, tmp_path):
        to_int8(outlier_encoder, tmp_path / "int8.onnx", PIXELS[:4])
        assert cosines(embed(outlier_encoder), embed(tmp_path / "int8.onnx")).min() > 0.999

    def test_pictures_unlike_the_calibration_are_not_clipped(self, outlier_encoder, tmp_path):
        to_int8(outlier_encoder, tmp_path / "int8.onnx", np.full((1, IMAGE_SIZE, IMAGE_SIZE, 3), 128, np.uint8))
        assert cosines(embed(outlier_encoder), embed(tmp_path / "int8.onnx")).min() > 0.999

    def test_products_are_int8_but_the_last_and_those_of_attention(self, encoder, int8):
        graph = onnx.load(encoder).graph
        weights = {tensor.name for tensor in graph.initializer}
        kept = [n for n in onnx.load(int8).graph.node if n.op_type in {"MatMul", "Gemm"} and n.input[1] in weights]
        quantized = [node for node in onnx.load(int8).graph.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(kept) == 3 + 1
        assert kept[-1].input[1] == "parts.0.visual.proj"
        assert len(quantized) == 3 * 3

    def test_gelus_are_one_node(self, tmp_path):
        source = exported(tmp_path / "model.onnx", quick_gelu=False)
        to_int8(source, tmp_path / "int8.onnx", PIXELS[:4])
        kinds = Counter(node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node)
        assert (kinds["Gelu"], kinds["Erf"]) == (3, 0)
        assert cosines(embed(source), embed(tmp_path / "int8.onnx")).min() > 0.999

    def test_what_only_looks_like_a_gelu_stays(self, tmp_path):
        source = exported(tmp_path / "model.onnx", quick_gelu=False)
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if not tensor.dims and tensor.data_type == TensorProto.FLOAT and numpy_helper.to_array(tensor) == 0.5:
                tensor.CopyFrom(numpy_helper.from_array(np.array(0.25, np.float32), tensor.name))
        onnx.save(model, source)
        to_int8(source, tmp_path / "int8.onnx", PIXELS[:4])
        assert not any(node.op_type == "Gelu" for node in onnx.load(tmp_path / "int8.onnx").graph.node)

    def test_norms_take_the_smoothing(self, int8):
        nodes = onnx.load(int8).graph.node
        smoothed = [n for n in nodes if n.op_type == "LayerNormalization" and n.input[1].endswith("_smooth_1")]
        assert len(smoothed) == 3 * 2

    def test_the_file_shrinks(self, encoder, int8):
        assert int8.stat().st_size < 0.45 * encoder.stat().st_size

    @pytest.mark.parametrize("opset", [17, 18, 21])
    def test_opsets(self, opset, tmp_path):
        source = write_product(tmp_path / "a.onnx", WEIGHT, opset=opset)
        to_int8(source, tmp_path / "b.onnx", SMALL_PIXELS[:2])
        assert cosines(embed(source, SMALL_PIXELS), embed(tmp_path / "b.onnx", SMALL_PIXELS)).min() > 0.999

    def test_calibration_of_another_size_is_refused(self, encoder, tmp_path):
        with pytest.raises(PrecisionError, match=re.escape("(2, 8, 8, 3) uint8, must be (N, 32, 32, 3) uint8")):
            to_int8(encoder, tmp_path / "b.onnx", np.zeros((2, 8, 8, 3), np.uint8))

    def test_no_calibration_is_refused(self, encoder, tmp_path):
        with pytest.raises(PrecisionError, match="N of at least 1"):
            to_int8(encoder, tmp_path / "b.onnx", PIXELS[:0])

    def test_activations_that_are_not_finite_are_refused(self, tmp_path):
        source = write_product(tmp_path / "a.onnx", np.full((12, 5), 3e38, np.float32))
        model = onnx.load(source)
        third = helper.make_node("MatMul", ["embedding_", "third"], ["embedding"], name="three")
        model.graph.node[-1].output[0] = "embedding_"
        model.graph.node.append(third)
        model.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32), "third"))
        onnx.save(model, source)
        with pytest.raises(PrecisionError, match="scaled is not finite for a calibration image"):
            to_int8(source, tmp_path / "b.onnx", SMALL_PIXELS)

    def test_nothing_to_quantize(self, encoder, tmp_path):
        model = onnx.load(encoder)
        first = [node for node in model.graph.node if node.op_type == "Cast"]
        del model.graph.node[:]
        model.graph.node.extend([first[0], helper.make_node("ReduceMean", [first[0].output[0]], ["embedding"])])
        onnx.save(model, tmp_path / "mean.onnx")
        with pytest.raises(PrecisionError, match="no matrix product with constant weights"):
            to_int8(tmp_path / "mean.onnx", tmp_path / "b.onnx", PIXELS[:1])

    def test_columns(self):
        matrix = np.array([[1, 0, -4], [-0.5, 0, 2]], np.float32)
        quantized, scales = quantize_columns(matrix)
        assert quantized.tolist() == [[127, 0, -127], [-64, 0, 64]]
        np.testing.assert_allclose(scales, [1 / 127, 1, 4 / 127])

    def test_a_weight_that_is_not_finite_is_refused(self):
        with pytest.raises(PrecisionError, match="not finite"):
            quantize_columns(np.array([[1, np.inf]], np.float32))

    def test_smoothing_levels_channels_with_powers_of_two(self):
        scale = smoothing(np.array([1, 64, 1, 1]), np.array([1, 1, 1, 1]))
        np.testing.assert_array_equal(np.log2(scale), np.round(np.log2(scale)))
        assert scale[1] / scale[0] == 8

    def test_smoothing_leaves_silent_channels_alone(self):
        scale = smoothing(np.array([1, 0, 1, 1]), np.ones(4))
        assert scale[0] / scale[1] <= 4
