"""build.engine: which target is taken, and why."""

from __future__ import annotations

import pytest

from build.engine import EngineError, choose_target, main


def test_onnx_is_taken_when_asked_for(capsys):
    assert choose_target("onnx").target == "onnx"
    assert main(["--target", "onnx"]) == 0
    assert capsys.readouterr().out == "onnx\n"


def test_auto_says_what_it_chose_and_why(capsys):
    assert main(["--target", "auto"]) == 0
    assert "engine: onnx (this release builds no TensorRT plans yet" in capsys.readouterr().err


def test_tensorrt_by_name_stops_instead_of_serving_something_else(capsys):
    with pytest.raises(EngineError, match="use TARGET=onnx"):
        choose_target("tensorrt")
    assert main(["--target", "tensorrt"]) == 1
    assert capsys.readouterr().out == ""
