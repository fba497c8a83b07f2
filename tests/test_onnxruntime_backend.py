"""The python-based `onnxruntime` backend: the session that a model's config leads to."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from typing import Any

import onnxruntime
import pytest
from google.protobuf.json_format import MessageToDict

from common.model_config import read_config
from common.paths import ROOT

FILE = ROOT / "serving" / "backends" / "onnxruntime" / "model.py"


@pytest.fixture(name="backend")
def _backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Triton's own module exists inside its stub only; nothing of it is called here.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in values.items()}}


def test_threads_that_are_asked_for(backend: Any) -> None:
    options = backend.session_options(parameters(intra_op_thread_count="3", inter_op_thread_count="2"))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2


@pytest.mark.parametrize("config", [{}, parameters(intra_op_thread_count="0")])
def test_no_number_of_threads_means_one_a_core(backend: Any, config: dict[str, Any]) -> None:
    count = backend.session_options(config).intra_op_num_threads
    assert 1 <= count <= len(os.sched_getaffinity(0))


def test_cores_that_this_process_may_not_use_do_not_count(backend: Any) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert backend.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_session_settings_go_to_onnxruntime_and_others_do_not(backend: Any) -> None:
    options = backend.session_options(parameters(**{"session.dynamic_block_base": "4", "unknown": "1"}))
    assert options.get_session_config_entry("session.dynamic_block_base") == "4"
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("unknown")


@pytest.mark.parametrize(("level", "name"), [("-1", "BASIC"), ("0", "ALL"), ("1", "EXTENDED")])
def test_graph_level(backend: Any, level: str, name: str) -> None:
    options = backend.session_options({"optimization": {"graph": {"level": level}}})
    assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{name}")


def test_a_gpu_computes_fp32_as_fp32_unless_the_config_allows_tf32(backend: Any, monkeypatch: Any) -> None:
    """CUDA is on no machine of these tests: onnxruntime's list of providers is all that is pretended."""
    config = MessageToDict(
        read_config(ROOT / "model_repository/clip_encoder/config.pbtxt"), preserving_proto_field_name=True
    )
    cpu = ["CPUExecutionProvider"]
    assert backend.providers(config, "GPU", "1") == cpu
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *cpu])
    assert backend.providers(config, "CPU", "0") == cpu
    cuda = ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"})
    assert backend.providers(config, "GPU", "1") == [cuda, *cpu]
    assert backend.providers({}, "GPU", "0") == [("CUDAExecutionProvider", {"device_id": 0}), *cpu]


def test_the_encoders_threads_wait_awake_only_while_it_computes(backend: Any) -> None:
    config = read_config(ROOT / "model_repository" / "clip_encoder" / "config.pbtxt")
    values = {key: {"string_value": value.string_value} for key, value in config.parameters.items()}
    options = backend.session_options({"parameters": values})
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
