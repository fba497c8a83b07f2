"""This machine's CPU: its name and instruction sets, and whether it computes what an encoder was verified to compute.

    python -m common.cpu

Standard library only: the container's health check names the CPU as well.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from common.gpu import find_gpus

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Those that decide how fast fp32 and int8 are, and how int8 rounds, as /proc/cpuinfo has them."""
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Cpu:
    """A processor."""

    name: str
    """Model name from the maker, or the architecture where the kernel gives none."""
    architecture: str
    """Such as `x86_64`."""
    flags: frozenset[str] = frozenset()
    """Flags that the kernel lists; empty where it lists none."""

    @property
    def instructions(self) -> list[str]:
        """Those of INSTRUCTIONS that it has."""
        return [name for name in INSTRUCTIONS if name in self.flags]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.instructions)})" if self.instructions else self.name


def find_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    """The CPU that this process runs on."""
    pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines()) if cpuinfo.is_file() else ()
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Cpu(fields.get("model name") or platform.machine(), platform.machine(), frozenset(flags))


def core_count() -> int:
    """Number of cores this process may use; two threads of one core count as two."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_core_count() -> int:
    """Number of cores this process may use; two threads of one core count once, as in the onnxruntime backend."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed]
    try:
        return len({path.read_text() for path in siblings})
    except OSError:  # a container may hide them
        return len(allowed)


def int8_problem(cpu: Cpu) -> str | None:
    """Return why an int8 ONNX encoder cannot be served on a CPU; None when it can, or the CPU does not say."""
    if cpu.architecture not in ("x86_64", "AMD64") or not cpu.flags or "avx2" in cpu.flags:
        return None
    return (
        f"the encoder is int8, and this CPU ({cpu}) has no AVX2, without which its products are not those that were "
        "verified; take build.precision fp32 in the recipe and run: make engines"
    )


def processors() -> str:
    """The CPU and the GPUs of this machine, for messages: `AMD EPYC (avx2), NVIDIA L4`."""
    try:
        gpus = [gpu.name for gpu in find_gpus()]
    except OSError:
        gpus = []
    return ", ".join([str(find_cpu()), *gpus])


if __name__ == "__main__":
    print(processors())
    sys.exit(0)
