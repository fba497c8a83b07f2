"""An int8 file is the same function on every CPU: by construction, by numpy's imitation, and on the real kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from benchmarks.instruction_sets import INSTRUCTION_SETS, NATIVE, NotImitated, environment
from benchmarks.trained_weights import WeightsMissing, dinov2_small
from build.cosine import cosines
from build.encoder import up_to_date
from build.errors import PrecisionError
from build.export import EncoderGraph, export_onnx
from build.quantize import MAX_PAIR, largest_pairs, quantize_columns, saturating_products, to_int8
from build.speed import images_per_second, speed_report
from common.photos import calibration_pictures, verification_pictures
from common.pixels import served_pixels
from recipes.serving_section import Serving

ROUGH = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 4)),
    elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


def saturated_product(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The product (M, K) uint8 × (K, N) int8 → (M, N) int32 of x86 CPUs without VNNI: VPMADDUBSW, then a sum."""
    padding = len(weights) % 2
    left = np.pad(activations, ((0, 0), (0, padding))).astype(np.int32)
    right = np.pad(weights, ((0, padding), (0, 0))).astype(np.int32)
    pairs = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)


def extreme_activations(weights: np.ndarray) -> np.ndarray:
    """Rows of 255 where a column of the weights is positive, where it is negative, and everywhere."""
    positive = (weights > 0).T * 255
    return np.concatenate([positive, 255 - positive, np.full_like(positive, 255)]).astype(np.uint8)


class TestByConstruction:
    @given(ROUGH)
    @settings(max_examples=300, deadline=None)
    def test_no_pair_saturates(self, matrix):
        weights, _ = quantize_columns(matrix)
        rows = extreme_activations(weights)
        assert largest_pairs(weights).max() <= MAX_PAIR
        np.testing.assert_array_equal(saturated_product(rows, weights), rows.astype(np.int32) @ weights)

    @given(ROUGH)
    @settings(max_examples=300, deadline=None)
    def test_a_weight_is_off_by_half_a_level_at_most(self, matrix):
        weights, scales = quantize_columns(matrix)
        assert (np.abs(weights * scales.astype(np.float64) - matrix) <= 0.5001 * scales).all()

    def test_a_lonely_large_weight_keeps_all_levels(self):
        weights, scales = quantize_columns(np.array([[1.0], [0.005], [-0.25], [0.25]], np.float32))
        assert weights.T.tolist() == [[126, 1, -32, 32]]
        assert scales[0] == pytest.approx(1.005 / 127)

    def test_neighbours_on_two_sides_of_zero_do_not_add_up(self):
        assert quantize_columns(np.array([[1.0], [-1.0]], np.float32))[0].T.tolist() == [[127, -127]]

    def test_equal_neighbours_take_half_the_levels(self):
        assert quantize_columns(np.array([[1.0], [1.0]], np.float32))[0].T.tolist() == [[64, 64]]

    def test_the_imitation_saturates_where_the_instruction_does(self):
        """255 × 127 + 255 × 127 is 64,770, and 2¹⁵ - 1 is all that 16 bits hold."""
        assert saturated_product(np.array([[255, 255]], np.uint8), np.array([[127], [127]], np.int8)) == 2**15 - 1

    def test_a_weight_that_is_not_finite_is_refused(self):
        with pytest.raises(PrecisionError, match="not finite"):
            quantize_columns(np.array([[1, np.nan]], np.float32))


def write_integer_product(path: Path, weights: np.ndarray) -> Path:
    """Write a model `rows` uint8 → `product`, with the node that int8 encoders have."""
    node = helper.make_node(
        "MatMulIntegerToFloat", ["rows", "weights", "one", "scale", "zero"], ["product"], "one", domain="com.microsoft"
    )
    constants = {
        "weights": weights,
        "one": np.array(1, np.float32),
        "scale": np.ones(weights.shape[1], np.float32),
        "zero": np.array(0, np.uint8),
    }
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, ["batch", len(weights)])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"rows": numpy.load(sys.argv[2])})[0])
"""


def product_on(instruction_set: str, model: Path, rows: np.ndarray) -> np.ndarray:
    """The product that onnxruntime computes in a process that sees this instruction set alone."""
    try:
        environ = environment(instruction_set)
    except NotImitated as reason:
        pytest.skip(str(reason))
    np.save(model.with_suffix(".rows.npy"), rows)
    files = [str(model), str(model.with_suffix(".rows.npy")), str(model.with_suffix(".product.npy"))]
    subprocess.run([sys.executable, "-c", RUN, *files], env=environ, check=True)
    return np.load(files[2])


class TestOnRealKernels:
    @pytest.mark.parametrize("instruction_set", [*INSTRUCTION_SETS, NATIVE])
    def test_the_product_is_exact(self, instruction_set, tmp_path):
        weights, _ = quantize_columns(np.random.default_rng(0).standard_t(2, (301, 70)).astype(np.float32))
        rows = extreme_activations(weights)
        product = product_on(instruction_set, write_integer_product(tmp_path / "product.onnx", weights), rows)
        np.testing.assert_array_equal(product, rows.astype(np.int32) @ weights)

    @pytest.mark.parametrize("instruction_set", [each.name for each in INSTRUCTION_SETS.values() if each.saturates])
    def test_weights_of_all_eight_bits_saturate_as_imitated(self, instruction_set, tmp_path):
        """This test shows that the one above could fail: products of all eight bits do saturate."""
        weights = np.random.default_rng(0).integers(-127, 128, (300, 64)).astype(np.int8)
        rows = extreme_activations(weights)
        product = product_on(instruction_set, write_integer_product(tmp_path / "product.onnx", weights), rows)
        np.testing.assert_array_equal(product, saturated_product(rows, weights))
        assert (product != rows.astype(np.int32) @ weights).any()


class TestOldFiles:
    def test_a_file_of_all_eight_bits_is_recognised(self, tmp_path):
        write_integer_product(tmp_path / "old.onnx", np.full((4, 2), 127, np.int8))
        assert saturating_products(tmp_path / "old.onnx") == ["one"]

    def test_a_file_of_this_build_is_not(self, tmp_path):
        weights, _ = quantize_columns(np.full((4, 2), 1, np.float32))
        assert saturating_products(write_integer_product(tmp_path / "new.onnx", weights)) == []

    def test_an_old_build_is_made_again(self, demo, encoder, monkeypatch, tmp_path):
        """An encoder that is up to date in every other way is built again when its file saturates."""
        from build.encoder import make_encoder
        from common.paths import encoder_folder

        recipe = demo.model_copy(update={"build": demo.build.model_copy(update={"precision": "int8"})})
        _, made = make_encoder(recipe)
        folder = encoder_folder(recipe)
        assert up_to_date(recipe, folder, "int8", made.made_from) == made
        monkeypatch.setattr("build.quantize.saturating_products", lambda path: ["old"])
        assert up_to_date(recipe, folder, "int8", made.made_from) is None


class TestSpeed:
    def test_both_figures_are_given(self):
        assert speed_report("int8", 30.04, 12.5) == "on this CPU: int8 30 images/s, fp32 12.5 (2.40×)"

    def test_a_slower_one_is_advised_against(self):
        report = speed_report("int8", 9, 10)
        assert report.startswith("on this CPU int8 is slower than fp32: int8 9 images/s, fp32 10 (0.90×)")
        assert "build.precision: fp32" in report

    def test_files_are_timed(self, encoder, demo):
        from common.paths import encoder_folder

        path = encoder_folder(demo) / "model.onnx"
        size = encoder.preprocessing[0].image_size
        speeds = images_per_second([path, path], np.zeros((4, size, size, 3), np.uint8))
        assert len(speeds) == 2
        assert min(speeds) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, (25, 384), of the verification's pictures by DINOv2's ViT-S/14, in fp32 and int8."""
    folder = tmp_path_factory.mktemp("trained")
    try:
        tower = dinov2_small()
    except WeightsMissing as reason:
        pytest.skip(str(reason))
    pixels, calibration = (
        served_pixels([tower.preprocessing], Serving(), pictures)
        for pictures in (verification_pictures(), calibration_pictures())
    )
    export_onnx(EncoderGraph([tower]), 18, folder / "fp32.onnx")
    to_int8(folder / "fp32.onnx", folder / "int8.onnx", calibration)
    assert saturating_products(folder / "int8.onnx") == []
    return embed(folder / "fp32.onnx", pixels), embed(folder / "int8.onnx", pixels)


class TestTrainedEncoder:
    """Random weights say nothing of what rounding does to trained ones."""

    def test_embeddings_stay(self, trained):
        assert cosines(*trained).min() > 0.999

    def test_no_decision_changes(self, trained):
        direction = np.random.default_rng(3).standard_normal((trained[0].shape[1], 1)) * 10
        full, reduced = (array @ direction >= 0 for array in trained)
        assert (full == reduced).all()


def embed(path: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = (pixels[start : start + 5] for start in range(0, len(pixels), 5))
    return np.concatenate([np.asarray(session.run(["embedding"], {"pixels": batch})[0]) for batch in batches])
