"""build.tensorrt_plan against a fake `tensorrt`: a mock, because TensorRT itself cannot be here.

The fake has the names and signatures of the real bindings and refuses any other, so these tests hold the calls, their
order of effects and every failure. They do not show that TensorRT builds the plan (`make check-tensorrt` does, with a
sister of the library) or that it runs.
"""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from fake_tensorrt import IBuilderConfig, ILogger, MemoryPoolType, Script, fake_tensorrt
from tiny_graph import INPUT, OUTPUT, write_graph

from build import tensorrt_plan
from build.tensorrt_plan import (
    HEARTBEAT_SECONDS,
    PlanError,
    PlanSpec,
    Progress,
    build_plan,
    check_uint8_input,
    run_plan,
)
from common.manifest import BatchProfile

VERSIONS = ("10.12.0.36", "10.16.1.11", "11.4.0.106")


@pytest.fixture
def spec(tmp_path):
    write_graph(tmp_path / "model.onnx")
    profile = BatchProfile(min_batch_size=1, opt_batch_size=8, max_batch_size=32)
    return PlanSpec(tmp_path / "model.onnx", INPUT, OUTPUT, profile, workspace_bytes=2**30)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "timing_caches" / "this.cache"


def quiet() -> Progress:
    return Progress(report=lambda line: None)


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_is_fp32_unless_the_recipe_allows_tf32(spec, cache, tf32):
    script = Script()
    build_plan(fake_tensorrt(script), dataclasses.replace(spec, tf32=tf32), cache, quiet())
    assert script.seen["tf32"] is tf32


@pytest.mark.parametrize("version", VERSIONS)
def test_the_network_is_strongly_typed_on_every_release(spec, cache, version):
    script = Script(version)
    assert bytes(build_plan(fake_tensorrt(script), spec, cache, quiet())) == b"a plan"
    assert script.seen["strongly_typed"]


def test_the_file_itself_is_parsed_so_that_weights_beside_it_are_found(spec, cache):
    script = Script()
    build_plan(fake_tensorrt(script), spec, cache, quiet())
    assert script.seen["parsed"] == str(spec.onnx_path)


def test_one_profile_and_the_workspace_limit(spec, cache):
    script = Script()
    build_plan(fake_tensorrt(script), spec, cache, quiet())
    assert script.seen["shapes"] == [{"pixels": ((1, 4, 4, 3), (8, 4, 4, 3), (32, 4, 4, 3))}]
    assert script.seen["pools"] == {MemoryPoolType.WORKSPACE: 2**30}


def test_a_profile_that_tensorrt_refuses(spec, cache):
    profile = BatchProfile(min_batch_size=1, opt_batch_size=64, max_batch_size=32)
    impossible = PlanSpec(spec.onnx_path, INPUT, OUTPUT, profile, 2**30)
    with pytest.raises(PlanError, match=r"refuses batch sizes \(1, 64, 32\) of pixels"):
        build_plan(fake_tensorrt(Script()), impossible, cache, quiet())


@pytest.mark.parametrize("version", VERSIONS)
def test_parser_errors_name_their_nodes(spec, cache, version):
    errors = ((3, "/attn/Softmax", "Softmax", "no FP8"), (7, "mean", "ReduceMean", "no axes"))
    script = Script(version, parser_errors=errors)
    with pytest.raises(PlanError) as caught:
        build_plan(fake_tensorrt(script), spec, cache, quiet())
    assert str(caught.value).splitlines()[1:] == [
        "  node 3 '/attn/Softmax' (Softmax): no FP8 [UNSUPPORTED_NODE]",
        "  node 7 'mean' (ReduceMean): no axes [UNSUPPORTED_NODE]",
    ]


def test_a_failed_build_says_what_the_log_said(spec, cache):
    with pytest.raises(PlanError, match=r"10.12.0.36 built no plan:\n  Could not find any implementation for .*MatMul"):
        build_plan(fake_tensorrt(Script(builds=False)), spec, cache, quiet())


def test_timings_are_kept_and_used_again(spec, cache):
    build_plan(fake_tensorrt(Script()), spec, cache, quiet())
    again = Script()
    build_plan(fake_tensorrt(again), spec, cache, quiet())
    assert again.seen["timings_before"] == ["layer 0", "layer 1", "layer 2"]


def test_timings_of_a_failed_build_are_kept(spec, cache):
    with pytest.raises(PlanError):
        build_plan(fake_tensorrt(Script(builds=False)), spec, cache, quiet())
    assert json.loads(cache.read_bytes()) == ["layer 0", "layer 1", "layer 2"]


@pytest.mark.parametrize("data", [b'["another GPU"]', b"\x00 cut short"])
def test_timings_of_another_gpu_or_a_damaged_file_are_not_used(spec, cache, data):
    cache.parent.mkdir()
    cache.write_bytes(data)
    script, reports = Script(), []
    build_plan(fake_tensorrt(script), spec, cache, Progress(report=reports.append))
    assert script.seen["timings_before"] == []
    assert f"{cache}: damaged, or made for another GPU or TensorRT; starting an empty timing cache" in reports


def test_a_failure_is_not_explained_by_an_unusable_timing_cache(spec, cache):
    cache.parent.mkdir()
    cache.write_bytes(b"\x00 cut short")
    with pytest.raises(PlanError) as caught:
        build_plan(fake_tensorrt(Script(builds=False)), spec, cache, quiet())
    assert str(caught.value).splitlines()[1:] == ["  Could not find any implementation for node MatMul_7"]


def test_a_stopped_build_ends_at_the_next_step_and_keeps_its_timings(spec, cache):
    progress = quiet()
    script = Script(steps=100, on_step=lambda: setattr(progress, "stopped", True))
    with pytest.raises(KeyboardInterrupt):
        build_plan(fake_tensorrt(script), spec, cache, progress)
    assert json.loads(cache.read_bytes()) == ["layer 0"]


def test_progress_is_reported(spec, cache, monkeypatch):
    monkeypatch.setattr(tensorrt_plan, "REPORT_SECONDS", 0)
    reports = []
    build_plan(fake_tensorrt(Script(steps=2)), spec, cache, Progress(report=reports.append))
    assert reports == ["Building Engine …", "Building Engine: 1 of 2", "Building Engine: 2 of 2"]


def test_a_report_that_fails_in_a_callback_is_not_lost(spec, cache):
    def report(line: str) -> None:
        raise BrokenPipeError("nobody reads on")

    with pytest.raises(BrokenPipeError, match="nobody reads on"):
        build_plan(fake_tensorrt(Script()), spec, cache, Progress(report=report))


def test_a_long_step_is_reported_while_it_runs():
    reports = []
    progress = Progress(report=reports.append)
    progress.start("Building Engine", None, 12)
    progress.step("Building Engine", 2)
    progress.heartbeat()
    assert reports == ["Building Engine …"]
    progress.reported_at -= HEARTBEAT_SECONDS
    progress.latest_at -= HEARTBEAT_SECONDS
    progress.heartbeat()
    assert re.fullmatch(r"still building; 3\d s since Building Engine: 3 of 12", reports[1])
    progress.heartbeat()
    assert len(reports) == 2


def test_a_uint8_input_has_to_be_cast_at_once(spec, cache, tmp_path):
    """TensorRT issue 3985: no layer but the cast takes UINT8, not even one that only moves data."""
    write_graph(tmp_path / "moved.onnx", cast_first=False)
    moved = PlanSpec(tmp_path / "moved.onnx", INPUT, OUTPUT, spec.profile, 2**30)
    with pytest.raises(PlanError, match=r"only straight into a Cast, here it goes into 'permute' \(Transpose\)"):
        build_plan(fake_tensorrt(Script()), moved, cache, quiet())
    check_uint8_input(spec)


def test_a_plan_is_run_in_batches_it_was_built_for(spec):
    pixels = np.zeros((70, 4, 4, 3), np.uint8)
    script = Script(embedding=(1.0, 2.0, 3.0))
    embeddings = run_plan(fake_tensorrt(script), b"a plan", spec, pixels, device="cpu")
    assert script.seen["batches"] == [(32, 4, 4, 3), (32, 4, 4, 3), (6, 4, 4, 3)]
    assert script.seen["loaded"] == b"a plan"
    assert np.array_equal(embeddings, np.tile(np.array([1, 2, 3], np.float32), (70, 1)))


def test_a_plan_that_does_not_load(spec):
    with pytest.raises(PlanError, match="does not load the plan it built"):
        run_plan(fake_tensorrt(Script(loads=False)), b"", spec, np.zeros((1, 4, 4, 3), np.uint8), device="cpu")


def test_a_plan_with_other_tensors(spec):
    output = OUTPUT.model_copy(update={"name": "features"})
    other = PlanSpec(spec.onnx_path, INPUT, output, spec.profile, 2**30)
    with pytest.raises(PlanError, match=r"has the tensors \['embedding', 'pixels'\], not pixels and features"):
        run_plan(fake_tensorrt(Script()), b"", other, np.zeros((1, 4, 4, 3), np.uint8), device="cpu")


def test_the_fake_refuses_names_that_tensorrt_does_not_have():
    """The fake is strict, so that the tests above mean something."""
    trt = fake_tensorrt(Script("11.4.0.106"))
    for name in ("OnnxParserFlag", "init_libnvinfer_plugins"):
        with pytest.raises(AttributeError):
            getattr(trt, name)
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        IBuilderConfig(Script(), ILogger()).max_workspace_size = 1  # pyright: ignore[reportAttributeAccessIssue] (the point)
    with pytest.raises(TypeError):
        IBuilderConfig(Script(), ILogger()).set_timing_cache(None)  # pyright: ignore[reportCallIssue] (the point)
