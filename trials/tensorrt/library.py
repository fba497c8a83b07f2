"""Loads TensorRT-RTX's builder and parser under NVIDIA's Python bindings, from the two wheels in .tensorrt/."""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from common.paths import ROOT
from recipes.errors import ExpectedError

FOLDER = ROOT / ".tensorrt"
SOURCE = Path(__file__).with_name("linked.c")
PARTS = {"libnvinfer.so.11": "CORE", "libnvinfer_plugin.so.11": "PLUGIN", "libnvonnxparser.so.11": "PARSER"}
"""Libraries that the bindings are linked with, and the part of linked.c that each is."""


class LibraryMissing(ExpectedError):
    """The wheels are not installed."""


def load_tensorrt(folder: Path = FOLDER) -> ModuleType:
    """The module `tensorrt_bindings`, in which TensorRT-RTX does the work.

    Raises:
        LibraryMissing: with how to install the wheels.
    """
    rtx = folder / "site" / "onnxruntime_ep_nv_tensorrt_rtx"
    if not rtx.is_dir():
        raise LibraryMissing(f"{rtx}: not found; install it with: make check-tensorrt")
    libraries = [next(rtx.glob(f"{name}.so.*.*")) for name in ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx")]
    for path in [*libraries, *(compiled(folder, name, part) for name, part in PARTS.items())]:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # by path and in this order; the bindings then find them by name
    sys.path.append(str(folder / "site"))
    return importlib.import_module("tensorrt_bindings")


def compiled(folder: Path, name: str, part: str) -> Path:
    """The path of one library, compiled from a part of linked.c."""
    path = folder / name
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        f"-D{part}",
        f"-Wl,-soname,{name}",
        "-o",
        str(path),
        str(SOURCE),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return path
