"""This machine's means to run TensorRT plans: its NVIDIA GPUs and the TensorRT library that a server would load.

    python -m common.gpu

Asks the driver (libcuda) and TensorRT (libnvinfer) themselves, so it needs neither a Python package nor nvidia-smi.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

TENSORRT_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")
TENSORRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
CUDA_DRIVER = "libcuda.so.1"
COMPUTE_CAPABILITY_ATTRIBUTES = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR

LoadLibrary = Callable[[str], ctypes.CDLL]


@dataclass(frozen=True)
class Gpu:
    """One visible device: `NVIDIA H200`, `9.0`."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """GPUs in the driver's order (device 0 first; CUDA_VISIBLE_DEVICES counts), and TensorRT's full version."""

    gpus: tuple[Gpu, ...] = ()
    tensorrt: str | None = None
    gpu_problem: str = ""
    """Why there is no GPU, for people."""


def find_machine(load: LoadLibrary = ctypes.CDLL) -> Machine:
    try:
        gpus, problem = find_gpus(load), ""
    except OSError as error:
        gpus, problem = (), str(error)
    return Machine(gpus, find_tensorrt(load), problem)


def find_gpus(load: LoadLibrary = ctypes.CDLL) -> tuple[Gpu, ...]:
    """The GPUs that CUDA programs see.

    Raises:
        OSError: there is no driver, or it has no device.
    """
    cuda = load(CUDA_DRIVER)
    _call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise OSError("the NVIDIA driver shows no GPU; CUDA_VISIBLE_DEVICES or the container hides it")
    return tuple(_describe_gpu(cuda, ordinal) for ordinal in range(count.value))


def find_tensorrt(load: LoadLibrary = ctypes.CDLL) -> str | None:
    """The full version of the library that a server on this machine loads, else of the installed Python package."""
    for name in TENSORRT_LIBRARIES:
        try:
            library = load(name)
        except OSError:
            continue
        parts = ("Major", "Minor", "Patch", "Build")
        return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    for name in TENSORRT_DISTRIBUTIONS:
        try:
            return comparable_version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def comparable_version(version: str) -> str:
    """The four numbers of a TensorRT version, without suffixes: `10.14.1.48.post1` → `10.14.1.48`."""
    return ".".join(re.findall(r"\d+", version)[:4])


def _describe_gpu(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ordinal)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    numbers = []
    for attribute in COMPUTE_CAPABILITY_ATTRIBUTES:
        number = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        numbers.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(numbers))


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    status = getattr(cuda, function)(*arguments)
    if status != 0:
        meaning = " (no GPU is visible)" if status == 100 else ""
        raise OSError(f"the NVIDIA driver's {function} failed with CUDA error {status}{meaning}")


def main() -> int:
    machine = find_machine()
    print(json.dumps(asdict(machine), indent=2))
    return 0 if machine.gpus else 1


if __name__ == "__main__":
    sys.exit(main())
