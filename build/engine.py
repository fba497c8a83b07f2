"""Chooses what the encoder is served as: the ONNX file, or a TensorRT plan built from it.

    python -m build.engine --target auto

`auto` takes TensorRT where it can be built and ONNX elsewhere, and says which and why. This release
serves ONNX; asked for `tensorrt` by name it stops instead of quietly serving something else.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass

TARGETS = ("auto", "onnx", "tensorrt")


class EngineError(RuntimeError):
    """The engine that was asked for cannot be built here."""


@dataclass(frozen=True)
class Choice:
    """`onnx` or `tensorrt`, and why."""

    target: str
    reason: str


def choose_target(target: str) -> Choice:
    """Resolve `auto`.

    Raises:
        EngineError: `tensorrt` was asked for by name.
    """
    if target == "onnx":
        return Choice("onnx", "asked for")
    missing = "this release builds no TensorRT plans yet"
    if importlib.util.find_spec("tensorrt") is None:
        missing += ", and the Python package tensorrt is not installed"
    if target == "tensorrt":
        raise EngineError(f"TARGET=tensorrt: {missing}; use TARGET=onnx, which Triton serves on CPUs and NVIDIA GPUs")
    return Choice("onnx", missing)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default="auto")
    arguments = parser.parse_args(argv)
    try:
        choice = choose_target(arguments.target)
    except EngineError as error:
        print(f"build.engine: {error}", file=sys.stderr)
        return 1
    print(f"engine: {choice.target} ({choice.reason})", file=sys.stderr)
    print(choice.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
