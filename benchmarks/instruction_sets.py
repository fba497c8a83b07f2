"""Runs a command as on a lesser x86 processor: onnxruntime chooses its kernels by CPUID, of which some bits are hidden.

    python -m benchmarks.instruction_sets --list
    python -m benchmarks.instruction_sets avx2 python -c 'import onnxruntime; …'

The kernels that run are the real ones, at their real speed on this processor. Linux, a C compiler and a processor that
can make CPUID fault are needed (Intel's since Ivy Bridge, AMD's since Zen 4; a virtual machine may not pass it on).
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.cpu import find_cpu
from recipes.errors import ExpectedError, run_step

SOURCE = Path(__file__).with_name("hide_cpuid.c")
NATIVE = "native"

# Bits of the six registers that hide_cpuid.c masks.
_AVX = 1 << 28 | 1 << 12 | 1 << 29  # leaf 1 ECX: AVX, FMA, F16C
_AVX2 = 1 << 5  # leaf 7 EBX
_AVX512 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31  # F, DQ, IFMA, CD, BW, VL
_AVX512_VNNI = 1 << 11  # leaf 7 ECX
_AVX512_MORE = 1 << 1 | 1 << 6 | 1 << 12 | 1 << 14  # VBMI, VBMI2, BITALG, VPOPCNTDQ
_AMX = 1 << 22 | 1 << 24 | 1 << 25  # leaf 7 EDX: BF16, TILE, INT8
_AVX512_ODD = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 23  # 4VNNIW, 4FMAPS, VP2INTERSECT, FP16
_AVX_VNNI = 1 << 4  # leaf 7.1 EAX
_AVX512_BF16 = 1 << 5
_LATE_AVX = _AVX_VNNI | _AVX512_BF16
_AVX_VNNI_INT = 1 << 4 | 1 << 5 | 1 << 10  # leaf 7.1 EDX: INT8, NE_CONVERT, INT16


@dataclass(frozen=True)
class InstructionSet:
    """A smaller instruction set, made from this processor's by hiding the rest.

    Attributes:
        needs: flags of /proc/cpuinfo without which there is nothing to leave.
        hidden: what hide_cpuid.c masks.
        saturates: whether onnxruntime's uint8 × int8 products add pairs in 16 bits.
    """

    name: str
    needs: frozenset[str]
    hidden: tuple[int, int, int, int, int, int]
    saturates: bool


_NO_AVX512 = (_AVX512, _AVX512_VNNI | _AVX512_MORE, _AMX | _AVX512_ODD)

_SETS = (
    InstructionSet("sse4", frozenset(), (_AVX, _AVX2 | _AVX512, *_NO_AVX512[1:], _LATE_AVX, _AVX_VNNI_INT), False),
    InstructionSet("avx2", frozenset({"avx2"}), (0, *_NO_AVX512, _LATE_AVX, _AVX_VNNI_INT), True),
    InstructionSet("avx-vnni", frozenset({"avx_vnni"}), (0, *_NO_AVX512, _AVX512_BF16, 0), False),
    InstructionSet("avx512", frozenset({"avx512f"}), (0, 0, _AVX512_VNNI, _AMX, _AVX_VNNI, _AVX_VNNI_INT), True),
    InstructionSet("avx512-vnni", frozenset({"avx512_vnni"}), (0, 0, 0, _AMX, 0, 0), False),
)
INSTRUCTION_SETS = {each.name: each for each in _SETS}


class NotImitated(ExpectedError):
    """A lesser processor cannot be imitated here; the message says why."""


def available() -> list[str]:
    """Names of the sets that this processor has, and `native`; `native` alone where none can be imitated."""
    try:
        hiding_library()
    except NotImitated:
        return [NATIVE]
    return [name for name, each in INSTRUCTION_SETS.items() if each.needs <= find_cpu().flags] + [NATIVE]


def environment(name: str) -> dict[str, str]:
    """The environment for a process that sees this set alone.

    Raises:
        NotImitated: this machine cannot, with the reason.
    """
    if name == NATIVE:
        return dict(os.environ)
    chosen = INSTRUCTION_SETS[name]
    if missing := chosen.needs - find_cpu().flags:
        raise NotImitated(f"{name} needs a processor with {', '.join(sorted(missing))}")
    masks = ",".join(f"{mask:x}" for mask in chosen.hidden)
    return os.environ | {"LD_PRELOAD": str(hiding_library()), "CLIPSIEVE_HIDDEN_CPUID": masks}


@functools.cache
def hiding_library() -> Path:
    """hide_cpuid.c, compiled and tried.

    Raises:
        NotImitated: there is no compiler, or CPUID cannot be made to fault.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotImitated("a C compiler is needed to imitate a lesser processor; none is on PATH")
    library = Path(_folder().name) / "hide_cpuid.so"
    for command, environ in (
        ([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], {}),
        (["true"], {"LD_PRELOAD": str(library), "CLIPSIEVE_HIDDEN_CPUID": "0,0,0,0,0,0"}),
    ):
        done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotImitated(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return library


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Holds the library until this process ends."""
    return tempfile.TemporaryDirectory(prefix="clipsieve-cpuid-")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instruction_sets", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--list", action="store_true", help="print the sets that can be had here, a line each")
    parser.add_argument("name", nargs="?", choices=[*INSTRUCTION_SETS, NATIVE])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    if arguments.list or not arguments.command:
        print("\n".join(available()))
        return 0
    return subprocess.run(arguments.command, env=environment(arguments.name), check=False).returncode


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.instruction_sets", main))
