"""The machine that a benchmark or trial runs on, without its name or paths, and the JSON line that ends each."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import psutil

from common.cpu import core_count, find_cpu
from common.gpu import find_gpus
from serving.triton_wheel import ServingError, find_wheel

Machine = Mapping[str, Any]

TOOLS = (
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "onnx", "torch", "torchvision", "open_clip_torch", "timm",
    "scikit-learn", "numpy", "pillow", "tritonclient",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Describe this machine; call it before anything is measured: `load_before` is the load average of the last
    minute."""
    cpu = find_cpu()
    return {
        "cpu": cpu.name,
        "instructions": cpu.instructions,
        "cores": core_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of the installed TOOLS and of the wheel that carries tritonserver."""
    result = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result | _triton_version()


def hardware_line(hardware: Machine) -> str:
    """`AMD EPYC (avx2), 2 cores, 15.6 GiB, Linux 6.1.0 x86_64`."""
    instructions = f" ({', '.join(hardware['instructions'])})" if hardware.get("instructions") else ""
    parts = [f"{hardware['cpu']}{instructions}", f"{hardware['cores']} cores"]
    parts += [f"{hardware['memory_gib']:g} GiB"] if "memory_gib" in hardware else []
    parts += [*hardware.get("gpus", []), *([hardware["kernel"]] if "kernel" in hardware else [])]
    return ", ".join(parts)


def versions_line(hardware: Machine) -> str:
    """`python 3.11.2, torch 2.9.0`."""
    return ", ".join(f"{name} {version}" for name, version in hardware.get("versions", {}).items())


def print_result(module: str, machine: Machine, /, **figures: Any) -> None:
    """Print the line that ends a benchmark or a trial: JSON of its figures, how they were measured and the machine.

    `benchmark` or `trial`, `command`, `date` (UTC), `took_s` (since the process began) and `machine` are added; a
    figure that is not a number becomes null.

    Args:
        module: the one that is run, such as `benchmarks.peers` or `trials.soak`.
    """
    package, name = module.split(".")
    how = {
        package.removesuffix("s"): name,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "took_s": round(time.time() - psutil.Process().create_time()),
    }
    result = json.loads(json.dumps(how | figures), parse_constant=lambda _: None)
    print(json.dumps(result | {"machine": dict(machine)}), flush=True)


def _gpus() -> list[str]:
    try:
        return [gpu.name for gpu in find_gpus()]
    except OSError:
        return []


def _triton_version() -> dict[str, str]:
    try:
        folder = str(find_wheel().site_packages)
    except ServingError:
        return {}
    distributions = importlib.metadata.distributions(name="nvidia-pytriton", path=[folder])
    return {each.name: each.version for each in distributions}
